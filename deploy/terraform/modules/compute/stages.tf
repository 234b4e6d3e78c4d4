# What stages run on. Each of these starts the same entry point of the same code; size, tags and run specification come
# with the call.

# Fargate. A task gets the role of its stage with the call; one without has none.

resource "aws_ecs_task_definition" "stage" {
  family                   = var.task_definition_name
  requires_compatibilities = ["FARGATE"]
  network_mode             = "awsvpc"
  cpu                      = 1024
  memory                   = 4096
  execution_role_arn       = var.role_arns["execution"]

  runtime_platform {
    operating_system_family = "LINUX"
    cpu_architecture        = "X86_64"
  }

  ephemeral_storage {
    size_in_gib = 50
  }

  container_definitions = jsonencode([{
    name            = var.container_name
    image           = var.image
    essential       = true
    command         = ["python", "-m", "barecount_assets.stages"]
    environment     = [for name, value in local.of_stages : { name = name, value = value }]
    stopTimeout     = 30
    linuxParameters = { initProcessEnabled = true }
    logConfiguration = {
      logDriver = "awslogs"
      options = {
        awslogs-group         = var.log_group_names["stages"]
        awslogs-region        = var.region
        awslogs-stream-prefix = "fargate"
      }
    }
  }])
}

# Lambda: a function per stage, size and network profile

resource "aws_lambda_function" "stage" {
  for_each = var.functions

  function_name = each.key
  description   = "The stage ${each.value.stage} of BareCount"
  package_type  = "Image"
  image_uri     = var.image
  role          = var.stage_role_arns["lambda-${each.value.stage}"]
  memory_size   = each.value.memory_mb
  timeout       = each.value.timeout_seconds

  image_config {
    entry_point = ["/opt/venv/bin/python", "-m", "awslambdaric"]
    command     = [var.function_handler]
  }

  ephemeral_storage {
    size = min(10240, max(512, each.value.memory_mb * 2))
  }

  environment {
    variables = local.of_stages
  }

  vpc_config {
    subnet_ids         = [for name in each.value.subnets : var.subnet_ids[name]]
    security_group_ids = [for name in each.value.security_groups : var.security_group_ids[name]]
  }

  logging_config {
    log_format = "Text"
    log_group  = var.log_group_names["stages"]
  }

  kms_key_arn = var.data_key_arn
}

# A stage that failed is started again by its run, which knows why it failed, and by nobody else.
resource "aws_lambda_function_event_invoke_config" "stage" {
  for_each = var.functions

  function_name                = aws_lambda_function.stage[each.key].function_name
  maximum_retry_attempts       = 0
  maximum_event_age_in_seconds = 60
}

# Glue: a job per stage and network profile

resource "aws_glue_connection" "stage" {
  for_each = var.glue_networks

  name            = "${var.name}-${replace(each.key, "_", "-")}"
  description     = "The network profile ${each.key}"
  connection_type = "NETWORK"

  physical_connection_requirements {
    availability_zone      = var.subnet_zones[each.value.subnet]
    subnet_id              = var.subnet_ids[each.value.subnet]
    security_group_id_list = [for name in each.value.security_groups : var.security_group_ids[name]]
  }
}

resource "aws_glue_security_configuration" "stage" {
  name = "${var.name}-stage"

  encryption_configuration {
    cloudwatch_encryption {
      cloudwatch_encryption_mode = "SSE-KMS"
      kms_key_arn                = var.logs_key_arn
    }

    job_bookmarks_encryption {
      job_bookmarks_encryption_mode = "DISABLED"
    }

    s3_encryption {
      s3_encryption_mode = "SSE-KMS"
      kms_key_arn        = var.data_key_arn
    }
  }
}

resource "aws_glue_job" "stage" {
  for_each = var.glue_jobs

  name                   = each.key
  description            = "The stage ${each.value.stage} of BareCount on ${each.value.profile}"
  role_arn               = var.stage_role_arns["glue-${each.value.stage}"]
  glue_version           = "5.0" # Python 3.11, Java 17
  worker_type            = var.glue_size.flavor
  number_of_workers      = var.glue_size.workers
  timeout                = ceil(var.glue_size.timeout_seconds / 60)
  max_retries            = 0
  connections            = [aws_glue_connection.stage[each.value.profile].name]
  security_configuration = aws_glue_security_configuration.stage.name

  execution_property {
    max_concurrent_runs = 20
  }

  command {
    name            = "glueetl"
    python_version  = "3"
    script_location = "s3://${var.runs_bucket}/${aws_s3_object.glue_script.key}"
  }

  # The project and its packages lie in S3: a job on a private profile has no registry to ask.
  default_arguments = merge(
    {
      "--additional-python-modules"        = "s3://${var.runs_bucket}/code/packages.gluewheels.zip"
      "--python-modules-installer-option"  = "--no-index"
      "--extra-files"                      = "s3://${var.runs_bucket}/code/project.zip"
      "--enable-continuous-cloudwatch-log" = "true"
      "--enable-metrics"                   = "true"
      "--enable-job-insights"              = "false"
      "--job-language"                     = "python"
      "--TempDir"                          = "s3://${var.runs_bucket}/code/temporary/"
    },
    { for name, value in local.of_stages : "--${name}" => value },
  )
}

resource "aws_s3_object" "glue_script" {
  bucket      = var.runs_bucket
  key         = "code/glue_stage.py"
  source      = var.glue_script
  source_hash = filesha256(var.glue_script)
}

# EC2: an instance per stage, started from this template with the stage's instance profile, commanded by SSM, terminated
# after it. Without a profile no agent of SSM answers, and nothing is run.

resource "aws_launch_template" "stage" {
  name                   = var.launch_template_name
  description            = "An instance for one stage of BareCount"
  update_default_version = true

  # Amazon Linux with Docker and the SSM agent; its newest version at the time of the start.
  image_id      = "resolve:ssm:/aws/service/ecs/optimized-ami/amazon-linux-2023/recommended/image_id"
  instance_type = var.instance_type

  # Whoever shuts it down from inside ends it: an instance nobody hears of any more goes away by itself.
  instance_initiated_shutdown_behavior = "terminate"

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 2 # the payload in its container asks too
    instance_metadata_tags      = "enabled"
  }

  block_device_mappings {
    device_name = "/dev/xvda"

    ebs {
      volume_type           = "gp3"
      volume_size           = 100
      encrypted             = true
      delete_on_termination = true
    }
  }

  monitoring {
    enabled = true
  }

  user_data = base64encode(templatefile("${path.module}/instance.sh.tftpl", {
    image       = var.image
    region      = var.region
    environment = local.of_stages
    log_group   = var.log_group_names["stages"]
    longest     = var.instance_longest_minutes
  }))

  dynamic "tag_specifications" {
    for_each = ["instance", "volume", "network-interface"]

    content {
      resource_type = tag_specifications.value
      tags          = { Name = var.launch_template_name, product = "barecount" }
    }
  }
}
