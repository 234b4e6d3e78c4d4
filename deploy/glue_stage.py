"""The script of the Glue job: the platform's own entry point, with the project where it looks for it.

Glue installs the packages and puts `project.zip` (contracts, dbt project, deploy/environments) beside this script; both
are made by `make glue`.
"""

import os
import runpy
import tempfile
import zipfile

folder = tempfile.mkdtemp(prefix="barecount-project-")
with zipfile.ZipFile("project.zip") as archive:
    archive.extractall(folder)
os.environ["BARECOUNT_PROJECT_DIR"] = folder
runpy.run_module("barecount_assets.stages", run_name="__main__")
