variable "name" {
  description = "What names begin with, for example barecount-dev."
  type        = string
}

variable "region" {
  description = "AWS region."
  type        = string
}

variable "logs_key_arn" {
  description = "Key of logs and alarms."
  type        = string
}

variable "retention_days" {
  description = "Days that logs are kept."
  type        = number
}

variable "alarm_emails" {
  description = "Who is told of alarms."
  type        = list(string)
}

variable "services" {
  description = "Services by name."
  type        = map(object({ cpu = number, memory_mb = number }))
}

variable "cluster_name" {
  description = "ECS cluster."
  type        = string
}

variable "function_names" {
  description = "Lambda functions."
  type        = list(string)
}

variable "glue_job_names" {
  description = "Glue jobs."
  type        = list(string)
}

variable "database_identifier" {
  description = "RDS instance."
  type        = string
}

variable "database_free_bytes_min" {
  description = "Free storage below which an alarm goes off, in bytes."
  type        = number
}

variable "database_connections_max" {
  description = "Connections the database takes."
  type        = number
}
