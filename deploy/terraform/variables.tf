variable "environment" {
  description = "Which deploy/environments/aws-<environment>.yaml to build: dev, prod."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9]{1,15}$", var.environment))
    error_message = "An environment is 2 to 16 lower-case letters and digits: dev, prod."
  }
}

variable "account_id" {
  description = "AWS account; credentials of another are refused."
  type        = string

  validation {
    condition     = can(regex("^[0-9]{12}$", var.account_id))
    error_message = "An account has 12 digits."
  }
}

variable "owner" {
  description = "Who answers for what is made here: a team or an address, the tag `owner` of everything."
  type        = string

  validation {
    condition     = length(var.owner) > 1
    error_message = "Name somebody."
  }
}

variable "image" {
  description = "The image by digest: <account>.dkr.ecr.<region>.amazonaws.com/<repository>@sha256:..."
  type        = string

  validation {
    condition     = can(regex("^[^@]+@sha256:[0-9a-f]{64}$", var.image))
    error_message = "Name the image by digest, not by tag: evidence says which image ran."
  }
}

variable "cidr" {
  description = "Addresses of the VPC, a /16 to /20 that no network it will be joined with uses."
  type        = string

  validation {
    condition     = can(cidrnetmask(var.cidr))
    error_message = "Allowed: an IPv4 network, for example 10.20.0.0/16."
  }
}

variable "zones" {
  description = "Availability zones used: the declared subnets end in -a, -b (and -c)."
  type        = number
  default     = 2

  validation {
    condition     = contains([2, 3], var.zones)
    error_message = "Allowed: 2 or 3; RDS wants two."
  }
}

variable "nat_gateways" {
  description = "NAT gateways, through which services and public_vpc_egress reach the internet: 1, or one per zone."
  type        = number
  default     = 1

  validation {
    condition     = contains([1, 2, 3], var.nat_gateways) && var.nat_gateways <= var.zones
    error_message = "Allowed: 1 to the number of zones."
  }
}

variable "vpn" {
  description = "The network behind the profile vpn: public address of its gateway, BGP number, networks; null for none."
  type        = object({ gateway_address = string, bgp_asn = number, cidrs = list(string) })
  default     = null

  validation {
    condition     = var.vpn == null ? true : length(var.vpn.cidrs) > 0 && !contains(var.vpn.cidrs, "0.0.0.0/0")
    error_message = "Name the networks behind the VPN; the internet is none of them."
  }
}

variable "private_source_cidrs" {
  description = "Networks with sources that runners on private_vpc may reach."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for cidr in var.private_source_cidrs : can(cidrnetmask(cidr)) && !endswith(cidr, "/0")])
    error_message = "Allowed: IPv4 networks, and not the whole internet: that is the profile public_vpc_egress."
  }
}

variable "privatelink_services" {
  description = "Other people's services behind PrivateLink, by a name of your own: service name, private DNS or not."
  type        = map(object({ service_name = string, private_dns = bool }))
  default     = {}

  validation {
    condition     = alltrue([for service in values(var.privatelink_services) : startswith(service.service_name, "com.amazonaws.vpce.")])
    error_message = "A service of others is named com.amazonaws.vpce.<region>.vpce-svc-..."
  }
}

variable "source_bucket_arns" {
  description = "Buckets with source files that ingestion may read."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for arn in var.source_bucket_arns : can(regex("^arn:aws:s3:::[a-z0-9.-]+$", arn))])
    error_message = "Allowed: arn:aws:s3:::<bucket>."
  }
}

variable "raw_lock_days" {
  description = "Days that raw objects cannot be replaced or removed; at most the shortest retention a contract declares."
  type        = number

  validation {
    condition     = var.raw_lock_days >= 1
    error_message = "One day at least."
  }
}

variable "evidence_lock_days" {
  description = "Days that checkpoints cannot be replaced or removed, by anybody, the owner of the account included."
  type        = number

  validation {
    condition     = var.evidence_lock_days >= 1
    error_message = "One day at least. There is no way back before it has passed."
  }
}

variable "raw_infrequent_after_days" {
  description = "Days after which raw objects move to STANDARD_IA; 90 days later to GLACIER_IR."
  type        = number
  default     = 60

  validation {
    condition     = var.raw_infrequent_after_days >= 30
    error_message = "S3 moves nothing to STANDARD_IA before 30 days."
  }
}

variable "messages_kept_days" {
  description = "Days that messages of runs are kept, when a run did not remove them itself."
  type        = number
  default     = 14

  validation {
    condition     = var.messages_kept_days >= 2
    error_message = "Two days at least: the longest stage runs for twelve hours."
  }
}

variable "database" {
  description = "RDS: version, instance class, storage in GB and its limit, standby, days of backups, connections."
  type = object({
    engine_version   = string
    instance_class   = string
    storage_gb       = number
    storage_limit_gb = number
    multi_az         = bool
    backup_days      = number
    max_connections  = number
  })

  validation {
    condition     = tonumber(split(".", var.database.engine_version)[0]) >= 18
    error_message = "The platform is tested on PostgreSQL 18."
  }

  validation {
    condition     = var.database.storage_limit_gb > var.database.storage_gb && var.database.backup_days >= 1
    error_message = "The storage's limit is above the storage, and backups are kept for a day at least."
  }
}

variable "database_password_version" {
  description = "A higher number makes a new password; services start anew after it."
  type        = number
  default     = 1

  validation {
    condition     = var.database_password_version >= 1
    error_message = "A whole number from 1."
  }
}

variable "code_location" {
  description = "Size of the code location, in which processes of runs wait for their runners: about 0.7 GB each."
  type        = object({ cpu = number, memory_mb = number })
  default     = { cpu = 1024, memory_mb = 8192 }

  validation {
    condition     = var.code_location.memory_mb >= 2048
    error_message = "2048 MB at least."
  }
}

variable "concurrent_runs" {
  description = "Runs in progress at once."
  type        = number
  default     = 8

  validation {
    condition     = var.concurrent_runs >= 1 && floor(var.concurrent_runs) == var.concurrent_runs
    error_message = "A whole number from 1."
  }
}

variable "log_retention_days" {
  description = "Days that logs are kept."
  type        = number
  default     = 90

  validation {
    condition     = contains([7, 14, 30, 60, 90, 180, 365, 400, 731], var.log_retention_days)
    error_message = "Allowed: what CloudWatch offers: 7, 14, 30, 60, 90, 180, 365, 400, 731."
  }
}

variable "alarm_emails" {
  description = "Who is told of alarms; each address confirms once."
  type        = list(string)
  default     = []

  validation {
    condition     = alltrue([for address in var.alarm_emails : can(regex("^[^@ ]+@[^@ ]+$", address))])
    error_message = "Allowed: mail addresses."
  }
}

variable "protected" {
  description = "Whether database, buckets and images refuse to be destroyed: true for everything that matters."
  type        = bool
}
