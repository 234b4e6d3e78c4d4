# Webserver, daemon, code location and action worker, on Fargate, one of each. They share a data folder. A run is a process
# of the code location that waits for its runners: a new code location lets the old one's runs end within two minutes, and
# those that do not are tried again.

resource "aws_service_discovery_private_dns_namespace" "services" {
  name        = "${var.name}.internal"
  description = "Services of ${var.name}"
  vpc         = var.vpc_id
}

resource "aws_service_discovery_service" "code_location" {
  name = "code-location"

  dns_config {
    namespace_id   = aws_service_discovery_private_dns_namespace.services.id
    routing_policy = "MULTIVALUE"

    dns_records {
      type = "A"
      ttl  = 10
    }
  }
}

resource "aws_ecs_task_definition" "service" {
  for_each = var.services

  family                   = "${var.name}-${each.key}"
  requires_compatibilities = ["FARGATE"]
  network_mode             = "awsvpc"
  cpu                      = each.value.cpu
  memory                   = each.value.memory_mb
  execution_role_arn       = var.role_arns["execution"]
  task_role_arn            = var.role_arns["control"]

  runtime_platform {
    operating_system_family = "LINUX"
    cpu_architecture        = "X86_64"
  }

  volume {
    name = "data"

    efs_volume_configuration {
      file_system_id     = var.file_system_id
      transit_encryption = "ENABLED"

      authorization_config {
        access_point_id = var.file_system_access_point_id
        iam             = "DISABLED" # the security group decides; the access point fixes folder and user
      }
    }
  }

  container_definitions = jsonencode(concat(
    # The schema is brought up to date before the code that needs it starts.
    each.key != "code-location" ? [] : [{
      name             = "migrate"
      image            = var.image
      essential        = false
      command          = ["barecount", "migrate"]
      environment      = [for name, value in local.of_services : { name = name, value = value }]
      mountPoints      = [{ sourceVolume = "data", containerPath = "/var/lib/barecount", readOnly = false }]
      logConfiguration = local.service_logs[each.key]
    }],
    [{
      name         = each.key
      image        = var.image
      essential    = true
      command      = each.value.command
      environment  = [for name, value in local.of_services : { name = name, value = value }]
      mountPoints  = [{ sourceVolume = "data", containerPath = "/var/lib/barecount", readOnly = false }]
      portMappings = each.value.port == null ? [] : [{ containerPort = each.value.port, protocol = "tcp" }]
      dependsOn    = each.key != "code-location" ? [] : [{ containerName = "migrate", condition = "SUCCESS" }]
      stopTimeout  = 120
      healthCheck = each.value.check == null ? null : {
        command     = concat(["CMD"], each.value.check)
        interval    = 60
        timeout     = 30
        retries     = 3
        startPeriod = 120
      }
      linuxParameters  = { initProcessEnabled = true }
      logConfiguration = local.service_logs[each.key]
    }],
  ))
}

locals {
  service_logs = {
    for service in keys(var.services) : service => {
      logDriver = "awslogs"
      options = {
        awslogs-group         = var.log_group_names["services"]
        awslogs-region        = var.region
        awslogs-stream-prefix = service
      }
    }
  }
}

resource "aws_ecs_service" "service" {
  for_each = var.services

  name                   = each.key
  cluster                = aws_ecs_cluster.platform.id
  task_definition        = aws_ecs_task_definition.service[each.key].arn
  desired_count          = 1
  launch_type            = "FARGATE"
  enable_execute_command = true
  propagate_tags         = "SERVICE"

  # One at a time: two daemons would start every schedule twice.
  deployment_minimum_healthy_percent = 0
  deployment_maximum_percent         = 100

  deployment_circuit_breaker {
    enable   = true
    rollback = true
  }

  network_configuration {
    subnets          = var.services_subnet_ids
    security_groups  = [var.services_security_group_id]
    assign_public_ip = false
  }

  dynamic "service_registries" {
    for_each = each.key == "code-location" ? [1] : []

    content {
      registry_arn = aws_service_discovery_service.code_location.arn
    }
  }
}
