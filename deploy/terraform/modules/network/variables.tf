variable "name" {
  description = "What names begin with, for example barecount-dev."
  type        = string
}

variable "region" {
  description = "AWS region."
  type        = string
}

variable "cidr" {
  description = "Addresses of the VPC, a /16 to /20."
  type        = string

  validation {
    condition     = can(cidrnetmask(var.cidr)) && tonumber(split("/", var.cidr)[1]) >= 16 && tonumber(split("/", var.cidr)[1]) <= 20
    error_message = "Allowed: an IPv4 network of size /16 to /20, for example 10.20.0.0/16."
  }
}

variable "zones" {
  description = "Availability zones used, 2 or 3; at least those that the declared subnets name (-a, -b, -c)."
  type        = number
}

variable "subnets" {
  description = "Subnets of the network profiles by name."
  type        = map(object({ tier = string, zone = number }))
}

variable "security_groups" {
  description = "Names of security groups by network profile."
  type        = map(string)

  validation {
    condition     = contains(keys(var.security_groups), "public_vpc_egress")
    error_message = "The environment declares no network profile public_vpc_egress, which services and Glue rely on."
  }
}

variable "endpoint_services" {
  description = "Services whose private endpoints the environment declares."
  type        = list(string)
}

variable "nat_gateways" {
  description = "NAT gateways: 1, or one per zone."
  type        = number

  validation {
    condition     = contains([1, 2, 3], var.nat_gateways) && var.nat_gateways <= var.zones
    error_message = "Allowed: 1 to the number of zones."
  }
}

variable "vpn" {
  description = "The network behind the profile vpn: its gateway's public address, BGP number and networks."
  type        = object({ gateway_address = string, bgp_asn = number, cidrs = list(string) })
}

variable "private_source_cidrs" {
  description = "Networks with sources that runners on private_vpc may reach."
  type        = list(string)

  validation {
    condition     = alltrue([for cidr in var.private_source_cidrs : can(cidrnetmask(cidr)) && !endswith(cidr, "/0")])
    error_message = "Allowed: IPv4 networks, and not the whole internet: that is the profile public_vpc_egress."
  }
}

variable "privatelink_services" {
  description = "Other people's services behind PrivateLink, by a name of your own."
  type        = map(object({ service_name = string, private_dns = bool }))
}

variable "allowed_bucket_arns" {
  description = "Buckets that can be reached through the S3 endpoint."
  type        = list(string)
}

variable "flow_log_group_arn" {
  description = "Log group of the VPC's flow logs."
  type        = string
}

variable "flow_log_role_arn" {
  description = "Role that writes flow logs."
  type        = string
}
