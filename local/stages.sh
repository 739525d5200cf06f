# stages.sh: what every recipe shares: its common options, and the stages, which run from $stage to $stop_stage.
# shellcheck shell=bash disable=SC2034,SC2154  # some variables are the recipe's

# shellcheck source=local/parse_options.sh
. "$(dirname "${BASH_SOURCE[0]}")/parse_options.sh"

train_config=${train_config:-conf/train.yaml} # a recipe with another sets it before it sources this file
stage=0 stop_stage=4 size=full run="" config="" nproc=0
options=(stage stop_stage size run config nproc)
common_options="  --stage N, --stop-stage N
                    first and last stage (default: 0 and 4)
  --size full|quick quick: a few hundred utterances, conf/quick.yaml
  --run NAME        folder of the run in exp/ (default: the size)
  --config FILE     YAML of the run (default: $train_config, or conf/quick.yaml with --size quick)
  --nproc N         training processes (default: one per GPU, one without GPU)
  ++key=value       any key of the YAML, for example ++optim_conf.lr=0.001"

# start_recipe "$@": reads the options, brings up the environment, and goes to the recipe's folder. Sets
#   $data, $exp     folders of the corpus in this size, and of the run
#   $tiny           folder of the random model to start from
#   $config         YAML of the run
#   $results        where the scores' rows go; those of a quick run stay in its folder
start_recipe() {
  local name
  parse_options "$@"
  [[ $size == full || $size == quick ]] || refuse "--size is full or quick, got '$size'"
  for name in config corpus tokenizer model encoder llm train dev test; do # named from where the user stands, or else from the recipe's folder
    [[ ! -e ${!name:-} ]] || printf -v "$name" %s "$(realpath "${!name}")"
  done
  # shellcheck source=local/env.sh
  . "$(dirname "${BASH_SOURCE[0]}")/env.sh"
  cd "$(dirname "$0")" || exit
  data=data/$size exp=exp/${run:-$size} tiny=exp/tiny_$size results=RESULTS.md
  if [[ $size == quick ]]; then
    config=${config:-conf/quick.yaml} results=$exp/RESULTS.md
  fi
  config=${config:-$train_config}
  trap finish EXIT
}

log() {
  printf '%(%H:%M:%S)T %s\n' -1 "$*"
}

# stage N MESSAGE: whether stage N is asked for; says so. For `if stage 0 "..."; then`.
stage() {
  ((stage <= $1 && $1 <= stop_stage)) || return 1
  now="stage $1"
  log "stage $1: $2"
}

# The last line of a run says how long it took, and where it stopped if it failed.
finish() {
  local status=$? took="$((SECONDS / 60)) min $((SECONDS % 60)) s"
  if ((status)); then
    log "failed in ${now:-no stage} (exit status $status) after $took" >&2
  else
    log "total time $took"
  fi
}
