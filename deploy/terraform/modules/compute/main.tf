# Where things run: the image's repository, the cluster with the services, and what stages run on.

locals {
  image_digest = regex("@(sha256:[0-9a-f]{64})$", var.image)[0]

  # Where project, stores and database are. No secret is among them: a stage reads the database's URL from Secrets
  # Manager, with its own role, when it starts.
  common = {
    BARECOUNT_ENVIRONMENT     = var.environment_name
    BARECOUNT_RAW_STORE       = var.raw_store
    BARECOUNT_DATABASE_SECRET = var.database_secret_arn
    BARECOUNT_SECRETS         = "aws:${var.tenant_secrets_prefix}"
    BARECOUNT_IMAGE_DIGEST    = local.image_digest
  }

  of_stages = merge(local.common, { BARECOUNT_DATA_DIR = "/tmp/barecount" })

  of_services = merge(local.common, {
    AWS_REGION                   = var.region
    BARECOUNT_CODE_LOCATION_HOST = "code-location.${aws_service_discovery_private_dns_namespace.services.name}"
    BARECOUNT_CONCURRENT_RUNS    = tostring(var.concurrent_runs)
    BARECOUNT_EVIDENCE_ANCHOR    = var.evidence_anchor
  })
}

resource "aws_ecr_repository" "platform" {
  name                 = var.name
  image_tag_mutability = "IMMUTABLE"
  force_delete         = !var.protected

  image_scanning_configuration {
    scan_on_push = true
  }

  encryption_configuration {
    encryption_type = "KMS"
    kms_key         = var.data_key_arn
  }
}

resource "aws_ecr_lifecycle_policy" "platform" {
  repository = aws_ecr_repository.platform.name

  policy = jsonencode({
    rules = [{
      rulePriority = 1
      description  = "The newest images; evidence names digests, and to repeat a run takes its image."
      selection    = { tagStatus = "any", countType = "imageCountMoreThan", countNumber = 100 }
      action       = { type = "expire" }
    }]
  })
}

# Lambda takes an image only from a repository that lets it.
resource "aws_ecr_repository_policy" "platform" {
  repository = aws_ecr_repository.platform.name
  policy     = data.aws_iam_policy_document.repository.json
}

data "aws_iam_policy_document" "repository" {
  statement {
    sid     = "FunctionsPullTheImage"
    actions = ["ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"]

    principals {
      type        = "Service"
      identifiers = ["lambda.amazonaws.com"]
    }
  }
}

resource "aws_ecs_cluster" "platform" {
  name = var.cluster_name

  setting {
    name  = "containerInsights"
    value = "enabled"
  }

  configuration {
    execute_command_configuration {
      kms_key_id = var.logs_key_arn
      logging    = "OVERRIDE"

      log_configuration {
        cloud_watch_encryption_enabled = true
        cloud_watch_log_group_name     = var.log_group_names["sessions"]
      }
    }
  }
}

resource "aws_ecs_cluster_capacity_providers" "platform" {
  cluster_name       = aws_ecs_cluster.platform.name
  capacity_providers = ["FARGATE", "FARGATE_SPOT"]
}
