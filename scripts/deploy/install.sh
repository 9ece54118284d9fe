#!/usr/bin/env bash
# Installs Python, a compiler for `compile=True`, and requirements.txt in VENV, in an Ubuntu or Debian image. For Dockerfile and
# apptainer.def.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

apt-get update
DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends g++ python3-dev python3-venv tini

./run.sh setup
mkdir -m 1777 data runs # of the demo, for any user
