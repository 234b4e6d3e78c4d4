variable "name" {
  description = "Name of the instance, for example barecount-dev."
  type        = string
}

variable "subnet_ids" {
  description = "Subnets, in two zones at least."
  type        = list(string)
}

variable "security_group_ids" {
  description = "Security groups."
  type        = list(string)
}

variable "data_key_arn" {
  description = "Key of the storage."
  type        = string
}

variable "secret_id" {
  description = "Secret that receives the URL."
  type        = string
}

variable "monitoring_role_arn" {
  description = "Role that writes RDS's measurements."
  type        = string
}

variable "settings" {
  description = "Version, instance class, storage in GB and its limit, standby, days of backups, connections."
  type = object({
    engine_version   = string
    instance_class   = string
    storage_gb       = number
    storage_limit_gb = number
    multi_az         = bool
    backup_days      = number
    max_connections  = number
  })
}

variable "password_version" {
  description = "A higher number makes a new password, in the database and in the secret."
  type        = number
}

variable "protected" {
  description = "Whether the instance refuses to be destroyed, and leaves a snapshot."
  type        = bool
}
