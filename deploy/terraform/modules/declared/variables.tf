variable "environment" {
  description = "Which deploy/environments/aws-<environment>.yaml."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9]{1,15}$", var.environment))
    error_message = "An environment is 2 to 16 lower-case letters and digits: dev, prod."
  }
}
