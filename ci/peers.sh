#!/usr/bin/env bash
# Build an environment with every library that has a target and runs on a CPU; with --run, judge all of them.
#
#     ci/peers.sh DIRECTORY            # the virtual environment, created if it does not exist
#     ci/peers.sh DIRECTORY --run      # then judge each target, with a report folder each under $REPORTS
#
# Libraries that pip cannot resolve together with torch 2.13 are installed without dependencies, at the versions for
# which the targets are written. The dependencies that NeMo Automodel and torchtune need are in constraints.txt; the
# target of Concrete ML uses a single file of it.
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
targets=(eager peft peft_experts peft_batched loralib torchtune concrete_ml nemo_automodel nemo_automodel:plain)
targets+=(nemo_experts nemo_experts:grouped nemo_automodel:triton)
for target in "${targets[@]}"; do
  options=()
  [ "$target" = nemo_automodel:triton ] && options=(--lane interpreter --profile quick)
  "$environment/bin/loraspec" run "conformance.targets.$target" "${options[@]}" \
    --report-dir "$reports/${target/:/-}" "${@:3}" || verdict=$?
done
exit "$verdict"
