variable "name" {
  description = "What names begin with, for example barecount-dev."
  type        = string
}

variable "bucket_names" {
  description = "Names of buckets by what they are for: runs, raw, evidence, access."
  type        = map(string)

  validation {
    condition     = length(setsubtract(["runs", "raw", "evidence", "access"], keys(var.bucket_names))) == 0
    error_message = "Needed: runs, raw, evidence, access."
  }
}

variable "messages_prefix" {
  description = "Prefix in the bucket of runs below which a run and its runner talk."
  type        = string
}

variable "data_key_arn" {
  description = "Key of objects and files."
  type        = string
}

variable "raw_lock_days" {
  description = "Days that a raw object cannot be replaced or removed."
  type        = number
}

variable "evidence_lock_days" {
  description = "Days that a checkpoint cannot be replaced or removed, by anybody."
  type        = number
}

variable "raw_infrequent_after" {
  description = "Days after which raw objects move to STANDARD_IA; 90 days later to GLACIER_IR."
  type        = number
}

variable "messages_kept_days" {
  description = "Days that messages of runs are kept."
  type        = number
}

variable "protected" {
  description = "Whether buckets with objects in them refuse to be destroyed."
  type        = bool
}

variable "services_subnet_ids" {
  description = "Subnets of the services, one per zone."
  type        = list(string)
}

variable "data_security_group_ids" {
  description = "Security groups of the file system."
  type        = list(string)
}
