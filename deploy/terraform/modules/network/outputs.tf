output "vpc_id" {
  description = "The VPC."
  value       = aws_vpc.platform.id
}

output "subnet_ids" {
  description = "Ids of all subnets by name."
  value       = { for name, subnet in aws_subnet.platform : name => subnet.id }
}

output "subnet_zones" {
  description = "Availability zones of all subnets by name."
  value       = { for name, subnet in aws_subnet.platform : name => subnet.availability_zone }
}

output "security_group_ids" {
  description = "Ids of the network profiles' security groups by name."
  value       = { for profile, group in aws_security_group.profile : group.name => group.id }
}

output "services_subnet_ids" {
  description = "Subnets of the services, one per zone."
  value       = [for name in sort(keys(local.of_tier.services)) : aws_subnet.platform[name].id]
}

output "data_subnet_ids" {
  description = "Subnets of the database, one per zone."
  value       = [for name in sort(keys(local.of_tier.data)) : aws_subnet.platform[name].id]
}

output "services_security_group_id" {
  description = "Security group of the services."
  value       = aws_security_group.services.id
}

output "database_security_group_id" {
  description = "Security group of the database."
  value       = aws_security_group.database.id
}

output "file_system_security_group_id" {
  description = "Security group of the services' file system."
  value       = aws_security_group.file_system.id
}

output "egress_addresses" {
  description = "Addresses that the internet sees: for the lists of partners."
  value       = aws_eip.nat[*].public_ip
}
