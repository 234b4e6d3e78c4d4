variable "name" {
  description = "What names begin with, for example barecount-dev."
  type        = string
}

variable "region" {
  description = "AWS region."
  type        = string
}

variable "account_id" {
  description = "AWS account."
  type        = string
}

variable "stages" {
  description = "Stages that get a role of their own."
  type        = list(string)
}

variable "bucket_names" {
  description = "Names of buckets by what they are for: runs, raw, evidence, access."
  type        = map(string)
}

variable "messages_prefix" {
  description = "Prefix in the bucket of runs below which a run and its runner talk."
  type        = string
}

variable "source_bucket_arns" {
  description = "Buckets that ingestion may read."
  type        = list(string)
}

variable "cluster_name" {
  description = "ECS cluster."
  type        = string
}

variable "task_definition_name" {
  description = "Family of the task definition of stages."
  type        = string
}

variable "function_name" {
  description = "What names of Lambda functions begin with; size and network profile follow."
  type        = string
}

variable "glue_job_name" {
  description = "What names of Glue jobs begin with; the network profile follows."
  type        = string
}

variable "agent_queues" {
  description = "Names of queues that agents poll, by network profile."
  type        = map(string)
}

variable "repository_name" {
  description = "Repository of the image."
  type        = string
}

variable "database_secret_name" {
  description = "Name of the secret that is the database's URL."
  type        = string
}

variable "tenant_secrets_prefix" {
  description = "What names of tenants' secrets begin with."
  type        = string

  validation {
    condition     = endswith(var.tenant_secrets_prefix, "/")
    error_message = "A prefix ends with a slash, or it lets in secrets of others."
  }
}

variable "key_deletion_days" {
  description = "Days in which the deletion of a key can be taken back."
  type        = number
}

variable "secret_recovery_days" {
  description = "Days in which a deleted secret can be had back; 0 deletes at once."
  type        = number
}
