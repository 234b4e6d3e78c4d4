# Buckets and the services' file system. Raw and evidence are locked: an object that was written stays as it was, for the
# days given, whoever asks. Raw in governance mode, so that a duty to erase can be met by somebody with that permission
# of their own; evidence in compliance mode, when nobody can, the account's owner included.

locals {
  locks = {
    raw      = { mode = "GOVERNANCE", days = var.raw_lock_days }
    evidence = { mode = "COMPLIANCE", days = var.evidence_lock_days }
  }
}

resource "aws_s3_bucket" "platform" {
  for_each = var.bucket_names

  bucket              = each.value
  object_lock_enabled = contains(keys(local.locks), each.key)
  force_destroy       = !var.protected && !contains(keys(local.locks), each.key)

  tags = { Name = each.value }
}

resource "aws_s3_bucket_object_lock_configuration" "platform" {
  for_each = local.locks

  bucket = aws_s3_bucket.platform[each.key].id

  rule {
    default_retention {
      mode = each.value.mode
      days = each.value.days
    }
  }

  depends_on = [aws_s3_bucket_versioning.platform]
}

resource "aws_s3_bucket_versioning" "platform" {
  for_each = var.bucket_names

  bucket = aws_s3_bucket.platform[each.key].id

  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "platform" {
  for_each = var.bucket_names

  bucket = aws_s3_bucket.platform[each.key].id

  rule {
    # S3 delivers access logs only to a bucket with its own keys.
    apply_server_side_encryption_by_default {
      sse_algorithm     = each.key == "access" ? "AES256" : "aws:kms"
      kms_master_key_id = each.key == "access" ? null : var.data_key_arn
    }

    bucket_key_enabled = each.key != "access"
  }
}

resource "aws_s3_bucket_public_access_block" "platform" {
  for_each = var.bucket_names

  bucket                  = aws_s3_bucket.platform[each.key].id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_ownership_controls" "platform" {
  for_each = var.bucket_names

  bucket = aws_s3_bucket.platform[each.key].id

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_logging" "platform" {
  for_each = { for use, name in var.bucket_names : use => name if use != "access" }

  bucket        = aws_s3_bucket.platform[each.key].id
  target_bucket = aws_s3_bucket.platform["access"].id
  target_prefix = "${each.key}/"
}

resource "aws_s3_bucket_policy" "platform" {
  for_each = var.bucket_names

  bucket = aws_s3_bucket.platform[each.key].id
  policy = data.aws_iam_policy_document.bucket[each.key].json

  depends_on = [aws_s3_bucket_public_access_block.platform]
}

data "aws_caller_identity" "current" {}

data "aws_iam_policy_document" "bucket" {
  for_each = var.bucket_names

  statement {
    sid       = "OnlyEncryptedConnections"
    effect    = "Deny"
    actions   = ["s3:*"]
    resources = [aws_s3_bucket.platform[each.key].arn, "${aws_s3_bucket.platform[each.key].arn}/*"]

    principals {
      type        = "AWS"
      identifiers = ["*"]
    }

    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["false"]
    }
  }

  dynamic "statement" {
    for_each = each.key == "access" ? [1] : []

    content {
      sid       = "AccessLogs"
      actions   = ["s3:PutObject"]
      resources = ["${aws_s3_bucket.platform[each.key].arn}/*"]

      principals {
        type        = "Service"
        identifiers = ["logging.s3.amazonaws.com"]
      }

      condition {
        test     = "StringEquals"
        variable = "aws:SourceAccount"
        values   = [data.aws_caller_identity.current.account_id]
      }
    }
  }
}

resource "aws_s3_bucket_lifecycle_configuration" "raw" {
  bucket = aws_s3_bucket.platform["raw"].id

  rule {
    id     = "cheaper-when-old"
    status = "Enabled"

    filter {
      prefix = "raw/"
    }

    # Classes that answer at once: a replay reads years of raw.
    transition {
      days          = var.raw_infrequent_after
      storage_class = "STANDARD_IA"
    }

    transition {
      days          = var.raw_infrequent_after + 90
      storage_class = "GLACIER_IR"
    }
  }

  # What retention hid is removed; S3 waits until its lock has passed.
  rule {
    id     = "expired-by-retention"
    status = "Enabled"

    filter {
      prefix = "raw/"
    }

    noncurrent_version_expiration {
      noncurrent_days = 7
    }

    expiration {
      expired_object_delete_marker = true
    }
  }

  rule {
    id     = "unfinished-uploads"
    status = "Enabled"

    filter {}

    abort_incomplete_multipart_upload {
      days_after_initiation = 2
    }
  }

  depends_on = [aws_s3_bucket_versioning.platform]
}

resource "aws_s3_bucket_lifecycle_configuration" "runs" {
  bucket = aws_s3_bucket.platform["runs"].id

  rule {
    id     = "messages"
    status = "Enabled"

    filter {
      prefix = var.messages_prefix == "" ? "" : "${var.messages_prefix}/"
    }

    expiration {
      days = var.messages_kept_days
    }

    noncurrent_version_expiration {
      noncurrent_days = 1
    }
  }

  depends_on = [aws_s3_bucket_versioning.platform]
}

resource "aws_s3_bucket_lifecycle_configuration" "access" {
  bucket = aws_s3_bucket.platform["access"].id

  rule {
    id     = "access-logs"
    status = "Enabled"

    filter {}

    expiration {
      days = 400
    }

    noncurrent_version_expiration {
      noncurrent_days = 1
    }
  }

  depends_on = [aws_s3_bucket_versioning.platform]
}

# The services' data folder: signing keys and what they remember, Dagster's home, logs. It is backed up: a lost signing
# key is a break in the chain of keys that auditors follow.

resource "aws_efs_file_system" "services" {
  creation_token = "${var.name}-services"
  encrypted      = true
  kms_key_id     = var.data_key_arn

  lifecycle_policy {
    transition_to_ia = "AFTER_30_DAYS"
  }

  tags = { Name = "${var.name}-services" }
}

resource "aws_efs_backup_policy" "services" {
  file_system_id = aws_efs_file_system.services.id

  backup_policy {
    status = "ENABLED"
  }
}

resource "aws_efs_mount_target" "services" {
  count = length(var.services_subnet_ids)

  file_system_id  = aws_efs_file_system.services.id
  subnet_id       = var.services_subnet_ids[count.index]
  security_groups = var.data_security_group_ids
}

resource "aws_efs_access_point" "services" {
  file_system_id = aws_efs_file_system.services.id

  # The user of the image.
  posix_user {
    uid = 10001
    gid = 10001
  }

  root_directory {
    path = "/barecount"

    creation_info {
      owner_uid   = 10001
      owner_gid   = 10001
      permissions = "0700"
    }
  }

  tags = { Name = "${var.name}-services" }
}
