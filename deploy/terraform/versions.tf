terraform {
  # Write-only arguments and ephemeral values keep the database's password out of the state.
  required_version = ">= 1.11.0"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "~> 5.100"
    }
  }

  # One state per environment: terraform init -backend-config=backends/<environment>.s3.tfbackend
  backend "s3" {
    encrypt      = true
    use_lockfile = true
  }
}

provider "aws" {
  region              = module.declared.region
  allowed_account_ids = [var.account_id]

  # What is made here carries these. What runs make carries tenant, pipeline, stage and run token besides: the runners'
  # code adds them, and so do the permissions that it needs.
  default_tags {
    tags = merge(module.declared.tags, { owner = var.owner, managed_by = "terraform" })
  }
}
