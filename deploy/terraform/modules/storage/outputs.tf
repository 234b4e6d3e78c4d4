output "bucket_ids" {
  description = "Buckets by what they are for."
  value       = { for use, bucket in aws_s3_bucket.platform : use => bucket.id }
}

output "file_system_id" {
  description = "The services' file system."
  value       = aws_efs_file_system.services.id

  # Nobody mounts it before it can be reached.
  depends_on = [aws_efs_mount_target.services]
}

output "file_system_access_point_id" {
  description = "The access point of the data folder."
  value       = aws_efs_access_point.services.id
}
