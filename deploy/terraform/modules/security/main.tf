# Who may do what: keys, secrets, and a role for each stage, service and backend. Every statement names its actions and,
# wherever AWS lets a resource be named, its resources.

locals {
  arn        = "arn:aws"
  account    = var.account_id
  bucket_arn = { for use, name in var.bucket_names : use => "${local.arn}:s3:::${name}" }
  messages   = "${local.bucket_arn.runs}/${var.messages_prefix == "" ? "" : "${var.messages_prefix}/"}*"
  raw        = "${local.bucket_arn.raw}/raw/*"
  checkpoint = "${local.bucket_arn.evidence}/checkpoints/*"
  secrets    = "${local.arn}:secretsmanager:${var.region}:${local.account}:secret:${var.tenant_secrets_prefix}*"
  log_groups = "${local.arn}:logs:${var.region}:${local.account}:log-group:/barecount/${var.name}/*"

  # What a stage does decides what its role may: only ingestion sees sources and tenants' secrets, and writes raw.
  stage_statements = {
    ingestion     = ["runs", "database", "raw_read", "raw_write", "sources", "tenant_secrets", "keys"]
    calendar      = ["runs", "database", "keys"]
    normalization = ["runs", "database", "raw_read", "keys"]
    kpi-build     = ["runs", "database", "raw_read", "keys"]
    publish       = ["runs", "database", "keys"]
  }

  keys = {
    data    = "Objects, files, volumes and the database"
    secrets = "Secrets"
    logs    = "Logs and alarms"
  }
}

# Keys

resource "aws_kms_key" "platform" {
  for_each = local.keys

  description             = "${var.name}: ${each.value}"
  enable_key_rotation     = true
  deletion_window_in_days = var.key_deletion_days
  policy                  = data.aws_iam_policy_document.key[each.key].json

  tags = { Name = "${var.name}-${each.key}" }
}

resource "aws_kms_alias" "platform" {
  for_each = local.keys

  name          = "alias/${var.name}-${each.key}"
  target_key_id = aws_kms_key.platform[each.key].key_id
}

# In the policy of a key, the resource "*" is the key itself.
data "aws_iam_policy_document" "key" {
  for_each = local.keys

  statement {
    sid = "AccountDecidesByIam"
    actions = [
      "kms:CancelKeyDeletion", "kms:CreateGrant", "kms:Decrypt", "kms:DescribeKey", "kms:DisableKey", "kms:EnableKey",
      "kms:EnableKeyRotation", "kms:Encrypt", "kms:GenerateDataKey", "kms:GenerateDataKeyWithoutPlaintext",
      "kms:GetKeyPolicy", "kms:GetKeyRotationStatus", "kms:ListGrants", "kms:ListKeyPolicies", "kms:ListResourceTags",
      "kms:PutKeyPolicy", "kms:ReEncryptFrom", "kms:ReEncryptTo", "kms:RevokeGrant", "kms:ScheduleKeyDeletion",
      "kms:TagResource", "kms:UntagResource", "kms:UpdateKeyDescription", "kms:CreateAlias", "kms:DeleteAlias",
      "kms:UpdateAlias",
    ]
    resources = ["*"]

    principals {
      type        = "AWS"
      identifiers = ["${local.arn}:iam::${local.account}:root"]
    }
  }

  dynamic "statement" {
    for_each = each.key == "logs" ? [1] : []

    content {
      sid = "LogsOfThisAccount"
      actions = [
        "kms:Decrypt", "kms:DescribeKey", "kms:Encrypt", "kms:GenerateDataKey", "kms:ReEncryptFrom", "kms:ReEncryptTo",
      ]
      resources = ["*"]

      principals {
        type        = "Service"
        identifiers = ["logs.${var.region}.amazonaws.com"]
      }

      condition {
        test     = "ArnLike"
        variable = "kms:EncryptionContext:aws:logs:arn"
        values   = ["${local.arn}:logs:${var.region}:${local.account}:log-group:*"]
      }
    }
  }

  dynamic "statement" {
    for_each = each.key == "logs" ? [1] : []

    content {
      sid       = "AlarmsToTheTopic"
      actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
      resources = ["*"]

      principals {
        type        = "Service"
        identifiers = ["cloudwatch.amazonaws.com"]
      }

      condition {
        test     = "StringEquals"
        variable = "aws:SourceAccount"
        values   = [local.account]
      }
    }
  }
}

# The secret that is the database's URL. Its value is written by the module database; tenants' secrets by
# `barecount secrets set`, below ${var.tenant_secrets_prefix}.
resource "aws_secretsmanager_secret" "database_url" {
  name                    = var.database_secret_name
  description             = "URL of the platform's PostgreSQL, with its password"
  kms_key_id              = aws_kms_key.platform["secrets"].arn
  recovery_window_in_days = var.secret_recovery_days

  tags = { Name = var.database_secret_name }
}

# Parts that roles are put together from

data "aws_iam_policy_document" "part" {
  for_each = {
    runs = {
      objects = { actions = ["s3:GetObject", "s3:PutObject"], resources = [local.messages] }
      listing = { actions = ["s3:ListBucket"], resources = [local.bucket_arn.runs] }
    }
    database = { one = {
      actions = ["secretsmanager:GetSecretValue"], resources = [aws_secretsmanager_secret.database_url.arn]
    } }
    raw_read = {
      objects = { actions = ["s3:GetObject"], resources = [local.raw] }
      listing = { actions = ["s3:ListBucket"], resources = [local.bucket_arn.raw] }
    }
    raw_write = { one = {
      actions = ["s3:PutObject", "s3:AbortMultipartUpload"], resources = [local.raw]
    } }
    sources = {
      for name, statement in {
        objects = { actions = ["s3:GetObject"], resources = [for arn in var.source_bucket_arns : "${arn}/*"] }
        listing = { actions = ["s3:ListBucket"], resources = var.source_bucket_arns }
      } : name => statement if length(var.source_bucket_arns) > 0
    }
    tenant_secrets = { one = {
      actions = ["secretsmanager:GetSecretValue", "secretsmanager:DescribeSecret"], resources = [local.secrets]
    } }
    keys = { one = {
      actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
      resources = [aws_kms_key.platform["data"].arn, aws_kms_key.platform["secrets"].arn]
    } }
  }

  dynamic "statement" {
    for_each = each.value

    content {
      actions   = statement.value.actions
      resources = statement.value.resources
    }
  }
}

data "aws_iam_policy_document" "stage" {
  for_each = local.stage_statements

  source_policy_documents = [for part in each.value : data.aws_iam_policy_document.part[part].json]
}

# An agent does whatever stage it is given.
data "aws_iam_policy_document" "any_stage" {
  source_policy_documents = [
    for part in distinct(flatten(values(local.stage_statements))) : data.aws_iam_policy_document.part[part].json
  ]
}

data "aws_iam_policy_document" "assumed_by" {
  for_each = {
    ecs        = "ecs-tasks.amazonaws.com"
    lambda     = "lambda.amazonaws.com"
    glue       = "glue.amazonaws.com"
    ec2        = "ec2.amazonaws.com"
    flow_logs  = "vpc-flow-logs.amazonaws.com"
    monitoring = "monitoring.rds.amazonaws.com"
  }

  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = [each.value]
    }

    # An instance's role is assumed without an account to compare.
    dynamic "condition" {
      for_each = contains(["ec2", "lambda", "glue"], each.key) ? [] : [1]

      content {
        test     = "StringEquals"
        variable = "aws:SourceAccount"
        values   = [local.account]
      }
    }
  }
}
