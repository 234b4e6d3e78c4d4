# What the services are; cpu in units of 1/1024 vCPU. Processes of runs are children of the code location.
locals {
  services = {
    webserver = {
      command   = ["barecount", "serve", "webserver"]
      check     = ["barecount", "serve", "check", "webserver"]
      port      = 3000
      cpu       = 512
      memory_mb = 2048
    }
    daemon = {
      command   = ["barecount", "serve", "daemon"]
      check     = ["barecount", "serve", "check", "daemon"]
      port      = null
      cpu       = 512
      memory_mb = 2048
    }
    code-location = {
      command   = ["barecount", "serve", "code-location"]
      check     = ["barecount", "serve", "check", "code-location"]
      port      = 4000
      cpu       = var.code_location.cpu
      memory_mb = var.code_location.memory_mb
    }
    actions = {
      command   = ["barecount", "actions", "work"]
      check     = null
      port      = null
      cpu       = 256
      memory_mb = 1024
    }
  }
}
