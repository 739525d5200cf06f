# parse_options.sh: the command line of our scripts; no eval, nothing unknown passes.
#
# The caller sets a variable with its default for each option, names them in the array options, puts the help into
# usage, then calls: parse_options "$@"
#   --stop-stage 2, --stop-stage=2   set stop_stage; where the default is a whole number, so must the value be
#   ++a.b=c                          goes into the array overrides, for the YAML's keys
#   --help                           prints usage
# shellcheck shell=bash disable=SC2154  # options and usage are the caller's

refuse() {
  echo "error: $*; ${0##*/} --help lists the options" >&2
  exit 2
}

# set_option NAME VALUE: the caller's variable of that name, if it is one of the options.
set_option() {
  local name=${1//-/_}
  [[ $1 != *.* ]] || refuse "unknown option --$1: a key of the YAML is written ++$1=value"
  [[ $name =~ ^[a-z_]+$ && " ${options[*]} " == *" $name "* ]] || refuse "unknown option --$1"
  # Also because the shell's arithmetic would run a command that stands in a value.
  if [[ ${!name} =~ ^[0-9]+$ && ! $2 =~ ^(0|[1-9][0-9]*)$ ]]; then
    refuse "--$1 wants a whole number, got '$2'"
  fi
  printf -v "$name" %s "$2"
}

parse_options() {
  local word
  overrides=()
  while (($#)); do
    word=$1
    shift
    case $word in
      --help | -h)
        printf '%s\n' "$usage"
        exit 0
        ;;
      ++[a-zA-Z_]*=*) overrides+=("$word") ;;
      ++*) refuse "'$word' is not of the form ++key=value" ;;
      --*=*)
        word=${word#--}
        set_option "${word%%=*}" "${word#*=}"
        ;;
      --*)
        (($#)) && [[ $1 != --* && $1 != ++* ]] || refuse "$word wants a value"
        set_option "${word#--}" "$1"
        shift
        ;;
      *) refuse "'$word' is left over" ;;
    esac
  done
}
