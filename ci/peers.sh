#!/usr/bin/env bash
# Build an environment with every library that has a target and runs on a CPU; run them all with --run.
#
#     ci/peers.sh DIRECTORY            # a virtual environment, made where it is not there yet
#     ci/peers.sh DIRECTORY --run      # then each target, one report folder each under $REPORTS
#
# What pip cannot resolve beside torch 2.13 is installed without its dependencies, at the versions the targets were
# written for: NeMo Automodel's and torchtune's that matter are in constraints.txt; of Concrete ML one file is used.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
environment=${1:?a directory for the virtual environment}
[ -x "$environment/bin/python" ] || "${PYTHON:-python3}" -m venv "$environment"
python=$environment/bin/python
"$python" -m pip install -q -c "$root/ci/constraints.txt" -e "$root[peers,torchtune]"
"$python" -m pip install -q --no-deps nemo-automodel==0.7.0 concrete-ml==1.7.0
[ "${2:-}" = --run ] || exit 0

reports=${REPORTS:-loraspec-report}/peers
verdict=0
for target in eager peft loralib torchtune concrete_ml nemo_automodel nemo_automodel:plain nemo_automodel:triton; do
  options=()
  [ "$target" = nemo_automodel:triton ] && options=(--lane interpreter --profile quick)
  "$environment/bin/loraspec" run "conformance.targets.$target" "${options[@]}" \
    --report-dir "$reports/${target/:/-}" "${@:3}" || verdict=$?
done
exit "$verdict"
