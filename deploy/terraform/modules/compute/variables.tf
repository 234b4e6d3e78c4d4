variable "name" {
  description = "What names begin with, for example barecount-dev."
  type        = string
}

variable "environment_name" {
  description = "Name of the environment as the platform knows it."
  type        = string
}

variable "region" {
  description = "AWS region."
  type        = string
}

variable "image" {
  description = "The image by digest."
  type        = string
}

variable "cluster_name" {
  description = "ECS cluster."
  type        = string
}

variable "task_definition_name" {
  description = "Family of the task definition of stages."
  type        = string
}

variable "container_name" {
  description = "Container of a stage's task."
  type        = string
}

variable "functions" {
  description = "Lambda functions by name."
  type = map(object({
    stage           = string
    memory_mb       = number
    timeout_seconds = number
    concurrency     = number
    subnets         = list(string)
    security_groups = list(string)
  }))
}

variable "function_handler" {
  description = "The payload's entry point on Lambda."
  type        = string
}

variable "glue_jobs" {
  description = "Glue jobs by name."
  type        = map(object({ stage = string, profile = string }))
}

variable "glue_networks" {
  description = "Networks of Glue jobs by network profile."
  type        = map(object({ subnet = string, security_groups = list(string) }))
}

variable "glue_size" {
  description = "Size of a Glue job where a run brings none."
  type        = object({ flavor = string, workers = number, timeout_seconds = number })
}

variable "glue_script" {
  description = "File of the payload's entry point on Glue."
  type        = string
}

variable "launch_template_name" {
  description = "Launch template."
  type        = string
}

variable "instance_type" {
  description = "Instance type where a run brings none."
  type        = string
}

variable "instance_longest_minutes" {
  description = "Minutes after which an instance ends itself: more than the longest stage."
  type        = number
}

variable "services" {
  description = "Services by name: command, health check, port, size."
  type = map(object({
    command   = list(string)
    check     = list(string)
    port      = number
    cpu       = number
    memory_mb = number
  }))
}

variable "concurrent_runs" {
  description = "Runs in progress at once."
  type        = number
}

variable "raw_store" {
  description = "The raw store, s3://bucket/prefix."
  type        = string
}

variable "evidence_anchor" {
  description = "Where checkpoints lie, s3://bucket/prefix."
  type        = string
}

variable "runs_bucket" {
  description = "Bucket of runs; what Glue runs lies below code/."
  type        = string
}

variable "database_secret_arn" {
  description = "The secret that is the database's URL."
  type        = string
}

variable "tenant_secrets_prefix" {
  description = "What names of tenants' secrets begin with."
  type        = string
}

variable "role_arns" {
  description = "Roles: control, execution."
  type        = map(string)
}

variable "stage_role_arns" {
  description = "Roles of stages by backend and stage: lambda-publish."
  type        = map(string)
}

variable "data_key_arn" {
  description = "Key of images, variables and objects."
  type        = string
}

variable "logs_key_arn" {
  description = "Key of logs."
  type        = string
}

variable "log_group_names" {
  description = "Log groups: services, stages, sessions."
  type        = map(string)
}

variable "vpc_id" {
  description = "The VPC."
  type        = string
}

variable "services_subnet_ids" {
  description = "Subnets of the services."
  type        = list(string)
}

variable "services_security_group_id" {
  description = "Security group of the services."
  type        = string
}

variable "subnet_ids" {
  description = "Ids of subnets by name."
  type        = map(string)
}

variable "subnet_zones" {
  description = "Availability zones of subnets by name."
  type        = map(string)
}

variable "security_group_ids" {
  description = "Ids of security groups by name."
  type        = map(string)
}

variable "file_system_id" {
  description = "File system of the services' data folder."
  type        = string
}

variable "file_system_access_point_id" {
  description = "Access point of the data folder."
  type        = string
}

variable "protected" {
  description = "Whether the repository refuses to be destroyed with images in it."
  type        = bool
}
