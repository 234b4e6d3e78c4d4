# Who may talk to whom. Groups of network profiles are named in deploy/environments; nothing comes in to a runner.

locals {
  profiles = toset(keys(var.security_groups))

  # Profiles that reach partners behind PrivateLink.
  linked = toset([for profile in local.profiles : profile if profile == "privatelink"])

  # Sources inside the VPC or networks peered with it, for the profile private_vpc alone.
  private_sources = toset(contains(local.profiles, "private_vpc") ? var.private_source_cidrs : [])
  vpn_sources     = toset(contains(local.profiles, "vpn") && var.vpn != null ? var.vpn.cidrs : [])
}

resource "aws_security_group" "profile" {
  for_each = var.security_groups

  name        = each.value
  description = "Runners on the network profile ${each.key}"
  vpc_id      = aws_vpc.platform.id

  tags = { Name = each.value, network_profile = each.key }
}

resource "aws_security_group" "services" {
  name        = "${var.name}-services"
  description = "Webserver, daemon, code location and action worker"
  vpc_id      = aws_vpc.platform.id

  tags = { Name = "${var.name}-services" }
}

resource "aws_security_group" "database" {
  name        = "${var.name}-database"
  description = "PostgreSQL"
  vpc_id      = aws_vpc.platform.id

  tags = { Name = "${var.name}-database" }
}

resource "aws_security_group" "endpoints" {
  name        = "${var.name}-endpoints"
  description = "Private endpoints of AWS services"
  vpc_id      = aws_vpc.platform.id

  tags = { Name = "${var.name}-endpoints" }
}

resource "aws_security_group" "partners" {
  name        = "${var.name}-partners"
  description = "Private endpoints of other people's services"
  vpc_id      = aws_vpc.platform.id

  tags = { Name = "${var.name}-partners" }
}

resource "aws_security_group" "file_system" {
  name        = "${var.name}-file-system"
  description = "The data folder of the services"
  vpc_id      = aws_vpc.platform.id

  tags = { Name = "${var.name}-file-system" }
}

# Out of runners

resource "aws_vpc_security_group_egress_rule" "profile_to_database" {
  for_each = local.profiles

  security_group_id            = aws_security_group.profile[each.value].id
  description                  = "PostgreSQL of the platform"
  referenced_security_group_id = aws_security_group.database.id
  ip_protocol                  = "tcp"
  from_port                    = 5432
  to_port                      = 5432
}

resource "aws_vpc_security_group_egress_rule" "profile_to_endpoints" {
  for_each = local.profiles

  security_group_id            = aws_security_group.profile[each.value].id
  description                  = "Private endpoints of AWS services"
  referenced_security_group_id = aws_security_group.endpoints.id
  ip_protocol                  = "tcp"
  from_port                    = 443
  to_port                      = 443
}

resource "aws_vpc_security_group_egress_rule" "profile_to_s3" {
  for_each = local.profiles

  security_group_id = aws_security_group.profile[each.value].id
  description       = "S3, through the gateway endpoint"
  prefix_list_id    = aws_vpc_endpoint.s3.prefix_list_id
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
}

resource "aws_vpc_security_group_egress_rule" "public_to_internet" {
  security_group_id = aws_security_group.profile["public_vpc_egress"].id
  description       = "HTTPS to the internet: this profile alone"
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
}

resource "aws_vpc_security_group_egress_rule" "private_to_sources" {
  for_each = local.private_sources

  security_group_id = aws_security_group.profile["private_vpc"].id
  description       = "Sources of private networks"
  cidr_ipv4         = each.value
  ip_protocol       = "tcp"
  from_port         = 0
  to_port           = 65535
}

resource "aws_vpc_security_group_egress_rule" "privatelink_to_partners" {
  for_each = local.linked

  security_group_id            = aws_security_group.profile[each.value].id
  description                  = "Other people's services behind PrivateLink"
  referenced_security_group_id = aws_security_group.partners.id
  ip_protocol                  = "tcp"
  from_port                    = 0
  to_port                      = 65535
}

resource "aws_vpc_security_group_egress_rule" "vpn_to_sources" {
  for_each = local.vpn_sources

  security_group_id = aws_security_group.profile["vpn"].id
  description       = "Sources behind the VPN"
  cidr_ipv4         = each.value
  ip_protocol       = "tcp"
  from_port         = 0
  to_port           = 65535
}

# Glue talks among its own workers, on any port; a group that lets itself in is what it asks for.

resource "aws_vpc_security_group_egress_rule" "profile_to_itself" {
  for_each = local.profiles

  security_group_id            = aws_security_group.profile[each.value].id
  description                  = "Workers of one Glue job"
  referenced_security_group_id = aws_security_group.profile[each.value].id
  ip_protocol                  = "tcp"
  from_port                    = 0
  to_port                      = 65535
}

resource "aws_vpc_security_group_ingress_rule" "profile_from_itself" {
  for_each = local.profiles

  security_group_id            = aws_security_group.profile[each.value].id
  description                  = "Workers of one Glue job"
  referenced_security_group_id = aws_security_group.profile[each.value].id
  ip_protocol                  = "tcp"
  from_port                    = 0
  to_port                      = 65535
}

# Into what runners use

resource "aws_vpc_security_group_ingress_rule" "database_from_profile" {
  for_each = local.profiles

  security_group_id            = aws_security_group.database.id
  description                  = "Runners on ${each.value}"
  referenced_security_group_id = aws_security_group.profile[each.value].id
  ip_protocol                  = "tcp"
  from_port                    = 5432
  to_port                      = 5432
}

resource "aws_vpc_security_group_ingress_rule" "database_from_services" {
  security_group_id            = aws_security_group.database.id
  description                  = "Services"
  referenced_security_group_id = aws_security_group.services.id
  ip_protocol                  = "tcp"
  from_port                    = 5432
  to_port                      = 5432
}

resource "aws_vpc_security_group_ingress_rule" "endpoints_from_profile" {
  for_each = local.profiles

  security_group_id            = aws_security_group.endpoints.id
  description                  = "Runners on ${each.value}"
  referenced_security_group_id = aws_security_group.profile[each.value].id
  ip_protocol                  = "tcp"
  from_port                    = 443
  to_port                      = 443
}

resource "aws_vpc_security_group_ingress_rule" "endpoints_from_services" {
  security_group_id            = aws_security_group.endpoints.id
  description                  = "Services"
  referenced_security_group_id = aws_security_group.services.id
  ip_protocol                  = "tcp"
  from_port                    = 443
  to_port                      = 443
}

resource "aws_vpc_security_group_ingress_rule" "partners_from_privatelink" {
  for_each = local.linked

  security_group_id            = aws_security_group.partners.id
  description                  = "Runners on ${each.value}"
  referenced_security_group_id = aws_security_group.profile[each.value].id
  ip_protocol                  = "tcp"
  from_port                    = 0
  to_port                      = 65535
}

# Services: each other's code location, the file system, and out to AWS and to receivers of actions.

resource "aws_vpc_security_group_ingress_rule" "services_from_services" {
  security_group_id            = aws_security_group.services.id
  description                  = "Webserver and daemon ask the code location"
  referenced_security_group_id = aws_security_group.services.id
  ip_protocol                  = "tcp"
  from_port                    = 4000
  to_port                      = 4000
}

resource "aws_vpc_security_group_egress_rule" "services_to_services" {
  security_group_id            = aws_security_group.services.id
  description                  = "Webserver and daemon ask the code location"
  referenced_security_group_id = aws_security_group.services.id
  ip_protocol                  = "tcp"
  from_port                    = 4000
  to_port                      = 4000
}

resource "aws_vpc_security_group_egress_rule" "services_to_database" {
  security_group_id            = aws_security_group.services.id
  description                  = "PostgreSQL of the platform"
  referenced_security_group_id = aws_security_group.database.id
  ip_protocol                  = "tcp"
  from_port                    = 5432
  to_port                      = 5432
}

resource "aws_vpc_security_group_egress_rule" "services_to_file_system" {
  security_group_id            = aws_security_group.services.id
  description                  = "The data folder"
  referenced_security_group_id = aws_security_group.file_system.id
  ip_protocol                  = "tcp"
  from_port                    = 2049
  to_port                      = 2049
}

resource "aws_vpc_security_group_ingress_rule" "file_system_from_services" {
  security_group_id            = aws_security_group.file_system.id
  description                  = "Services"
  referenced_security_group_id = aws_security_group.services.id
  ip_protocol                  = "tcp"
  from_port                    = 2049
  to_port                      = 2049
}

resource "aws_vpc_security_group_egress_rule" "services_to_https" {
  security_group_id = aws_security_group.services.id
  description       = "AWS, and receivers of actions over HTTPS"
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
}

resource "aws_vpc_security_group_egress_rule" "services_to_mail" {
  security_group_id = aws_security_group.services.id
  description       = "Mail servers (submission) of actions"
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "tcp"
  from_port         = 587
  to_port           = 587
}
