# RDS PostgreSQL. Its password is made here and kept in Secrets Manager as part of a URL; neither plan nor state holds it.

ephemeral "aws_secretsmanager_random_password" "platform" {
  password_length     = 40
  exclude_punctuation = true # it becomes part of a URL
}

resource "aws_db_subnet_group" "platform" {
  name       = var.name
  subnet_ids = var.subnet_ids

  tags = { Name = var.name }
}

resource "aws_db_parameter_group" "platform" {
  name_prefix = "${var.name}-"
  family      = "postgres${split(".", var.settings.engine_version)[0]}"
  description = "PostgreSQL of ${var.name}"

  parameter {
    name  = "rds.force_ssl"
    value = "1"
  }

  parameter {
    name  = "log_min_duration_statement"
    value = "5000"
  }

  parameter {
    name  = "idle_in_transaction_session_timeout"
    value = "3600000"
  }

  # Loads are large and can be repeated: fewer checkpoints.
  parameter {
    name  = "max_wal_size"
    value = "8192"
  }

  parameter {
    name  = "jit"
    value = "0"
  }

  # Statements with a password in them, as those that make analysts' logins, stay out of the log.
  parameter {
    name  = "log_statement"
    value = "none"
  }

  parameter {
    name         = "max_connections"
    value        = tostring(var.settings.max_connections)
    apply_method = "pending-reboot"
  }

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_db_instance" "platform" {
  identifier     = var.name
  engine         = "postgres"
  engine_version = var.settings.engine_version
  instance_class = var.settings.instance_class

  db_name             = "barecount"
  username            = "barecount"
  password_wo         = ephemeral.aws_secretsmanager_random_password.platform.random_password
  password_wo_version = var.password_version

  storage_type          = "gp3"
  allocated_storage     = var.settings.storage_gb
  max_allocated_storage = var.settings.storage_limit_gb
  storage_encrypted     = true
  kms_key_id            = var.data_key_arn

  multi_az               = var.settings.multi_az
  db_subnet_group_name   = aws_db_subnet_group.platform.name
  vpc_security_group_ids = var.security_group_ids
  publicly_accessible    = false
  ca_cert_identifier     = "rds-ca-rsa2048-g1"
  parameter_group_name   = aws_db_parameter_group.platform.name

  backup_retention_period    = var.settings.backup_days
  backup_window              = "01:00-02:00"
  maintenance_window         = "Sun:02:30-Sun:03:30"
  auto_minor_version_upgrade = true
  copy_tags_to_snapshot      = true
  deletion_protection        = var.protected
  skip_final_snapshot        = !var.protected
  final_snapshot_identifier  = var.protected ? "${var.name}-final" : null

  monitoring_interval             = 60
  monitoring_role_arn             = var.monitoring_role_arn
  performance_insights_enabled    = true
  performance_insights_kms_key_id = var.data_key_arn
  enabled_cloudwatch_logs_exports = ["postgresql", "upgrade"]

  tags = { Name = var.name }
}

resource "aws_secretsmanager_secret_version" "database_url" {
  secret_id = var.secret_id
  secret_string_wo = format(
    "postgresql://%s:%s@%s/%s?sslmode=require",
    aws_db_instance.platform.username, ephemeral.aws_secretsmanager_random_password.platform.random_password,
    aws_db_instance.platform.endpoint, aws_db_instance.platform.db_name,
  )
  secret_string_wo_version = var.password_version
}
