output "identifier" {
  description = "Name of the instance."
  value       = aws_db_instance.platform.identifier
}

output "endpoint" {
  description = "Host and port."
  value       = aws_db_instance.platform.endpoint
}
