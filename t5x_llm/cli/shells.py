"""Completion scripts of bash, zsh and fish, with all names written into them."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence

from t5x_llm.cli.command_line import FILES, CommandLine, Flag

Commands = Sequence[CommandLine]
Fields = Mapping[str, Sequence[str]]

_BASH = """# Completion of t5x-llm for bash; printed by: t5x-llm completion bash
_t5x_llm_reply() {
  local IFS=$'\\n'
  COMPREPLY=($(IFS=$' \\n'; compgen "$@"))
}

_t5x_llm_files() {
  _t5x_llm_reply -f -- "$1"
  compopt -o filenames 2>/dev/null
}

_t5x_llm_gin() {
  local rest=${1#--gin.} scope= class fields
  [[ $rest == */* ]] && scope=${rest%/*}/ rest=${rest##*/}
  class=${rest%%.*}
  compopt -o nospace 2>/dev/null
  if [[ $rest != *.* ]]; then
    _t5x_llm_reply -P "--gin.$scope" -S . -W '@CLASSES@' -- "$rest"
    return
  fi
  case $class in
@FIELDS@
  esac
  _t5x_llm_reply -P "--gin.$scope$class." -S = -W "$fields" -- "${rest#*.}"
}

_t5x_llm() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}
  local command=${COMP_WORDS[1]} flag= words= flags= gin=
  COMPREPLY=()
  # Bash makes "=" a word of its own, and replaces what comes after it.
  if [[ $cur == = ]]; then flag=$prev cur=
  elif [[ $prev == = ]]; then flag=${COMP_WORDS[COMP_CWORD-2]}
  elif [[ $prev == --* ]]; then flag=$prev
  fi
  ((COMP_CWORD == 1)) && command=
  ((COMP_CWORD > 2)) && case "$command ${COMP_WORDS[2]}" in
    @PAIRS@) command+=" ${COMP_WORDS[2]}" ;;
  esac
  case "$command $flag" in
@VALUES@
  esac
  case $command in
@COMMANDS@
  esac
  if [[ $cur == --gin.* ]]; then
    [[ -n $gin ]] && _t5x_llm_gin "$cur"
  elif [[ $cur == -* ]]; then
    _t5x_llm_reply -W "$flags" -- "$cur"
    [[ ${COMPREPLY[*]} == --gin. ]] && compopt -o nospace 2>/dev/null
  elif [[ -n $words ]]; then
    _t5x_llm_reply -W "$words" -- "$cur"
  else
    _t5x_llm_files "$cur"
  fi
}

complete -F _t5x_llm t5x-llm"""

_ZSH = """#compdef t5x-llm
# Completion of t5x-llm for zsh; printed by: t5x-llm completion zsh
_t5x-llm_gin() {
  local rest=${1#--gin.} scope= class
  local -a fields
  [[ $rest == */* ]] && scope=${rest%/*}/ rest=${rest##*/}
  class=${rest%%.*}
  if [[ $rest != *.* ]]; then
    fields=(@CLASSES@)
    compadd -S . -- "--gin.$scope"${^fields}
    return
  fi
  case $class in
@FIELDS@
  esac
  compadd -S = -- "--gin.$scope$class."${^fields}
}

_t5x-llm() {
  local command=$words[2] cur=$words[CURRENT] flag= gin=
  local -a below flags
  ((CURRENT == 2)) && command=
  ((CURRENT > 3)) && case "$words[2] $words[3]" in
    (@PAIRS@) command="$words[2] $words[3]" ;;
  esac
  if [[ $cur == --*=* ]]; then
    flag=${cur%%=*}
  elif [[ $words[CURRENT-1] == --* ]]; then
    flag=$words[CURRENT-1]
  fi
  [[ $cur == --*=* ]] && compset -P '*='
  case "$command $flag" in
@VALUES@
  esac
  case $command in
@COMMANDS@
  esac
  if [[ $cur == --gin.* ]]; then
    [[ -n $gin ]] && _t5x-llm_gin "$cur"
  elif [[ $cur == -* ]]; then
    _describe -o flag flags
    [[ -n $gin ]] && compadd -S '' -- --gin.
  elif (($#below)); then
    _describe word below
  else
    _files
  fi
}

if [[ $funcstack[1] == _t5x-llm ]]; then
  _t5x-llm "$@"
else
  compdef _t5x-llm t5x-llm
fi"""

_FISH = """# Completion of t5x-llm for fish; printed by: t5x-llm completion fish
function __t5x_llm_at
    set -l given (commandline -opc)[2..-1]
    string match -q -- "$argv *" "$given "
end

function __t5x_llm_gin
    set -l cur (commandline -ct)
    string match -q -- '--g*' $cur; or return
    if not string match -q -- '--gin.*' $cur
        echo --gin.
        return
    end
    set -l rest (string replace -- --gin. '' $cur)
    set -l scope (string match -r -- '^.*/' $rest)
    set rest (string replace -r -- '^.*/' '' $rest)
    if not string match -q '*.*' $rest
        set -l classes @CLASSES@
        printf '%s\\n' "--gin.$scope"$classes.
        return
    end
    set -l class (string replace -r -- '[.].*' '' $rest)
    set -l fields
    switch $class
@FIELDS@
    end
    test -n "$fields"; and printf '%s\\n' "--gin.$scope$class."$fields=
end

complete -c t5x-llm -f
@COMMANDS@"""


def _values(commands: Commands, files: str, choices: Callable[[Sequence[str]], str]) -> str:
    """Returns the cases of ``COMMAND FLAG`` for flags that take a value."""
    cases: dict[str, list[str]] = {files: [], ":": []}
    for command in commands:
        for flag in command.flags:
            if flag.values is None:
                continue
            does = files if flag.values == FILES else ":"
            if flag.values and flag.values != FILES:
                does = choices(flag.values)
            cases.setdefault(does, []).append(f"'{' '.join((*command.path, flag.name))}'")
        if command.gin:
            cases[":"].append(f"'{' '.join(command.path)} --gin.'*")
    lines = [f"    {' | '.join(keys)}) {does}; return ;;" for does, keys in cases.items() if keys]
    return "\n".join(lines)


def _pairs(commands: Commands) -> str:
    return " | ".join(f"'{' '.join(c.path)}'" for c in commands if len(c.path) == 2)


def _first_words(commands: Commands) -> list[tuple[str, str]]:
    return [(c.path[0], c.help) for c in commands if len(c.path) == 1]


def bash(commands: Commands, fields: Fields) -> str:
    """Returns the script of bash, 3.2 and later."""
    cases = [f"    '') words='{' '.join(name for name, _ in _first_words(commands))} --help' ;;"]
    for c in commands:
        words = " ".join(name for name, _ in c.words)
        flags = " ".join([f.name for f in c.flags] + ["--gin."] * c.gin)
        gin = " gin=1" if c.gin else ""
        cases.append(f"    '{' '.join(c.path)}') words='{words}' flags='{flags}'{gin} ;;")
    return _filled(
        _BASH,
        CLASSES=" ".join(fields),
        FIELDS="\n".join(f"    {name}) fields='{' '.join(f)}' ;;" for name, f in fields.items()),
        PAIRS=_pairs(commands),
        VALUES=_values(
            commands,
            '_t5x_llm_files "$cur"',
            lambda values: f"""_t5x_llm_reply -W '{" ".join(values)}' -- "$cur\"""",
        ),
        COMMANDS="\n".join(cases),
    )


def zsh(commands: Commands, fields: Fields) -> str:
    """Returns the script of zsh."""

    def described(entries: Sequence[tuple[str, str]]) -> str:
        items = (f"{name}:{help}" if help else name for name, help in entries)
        return " ".join(map(shlex.quote, items))

    cases = [f"    ('') below=({described(_first_words(commands))}) ;;"]
    for c in commands:
        gin = " gin=1" if c.gin else ""
        flags = described([(f.name, f.help) for f in c.flags])
        path = " ".join(c.path)
        cases.append(f"    ('{path}') below=({described(c.words)}) flags=({flags}){gin} ;;")
    return _filled(
        _ZSH,
        CLASSES=" ".join(fields),
        FIELDS="\n".join(f"    ({name}) fields=({' '.join(f)}) ;;" for name, f in fields.items()),
        PAIRS=_pairs(commands),
        VALUES=_values(commands, "_files", lambda values: f"compadd -- {' '.join(values)}"),
        COMMANDS="\n".join(cases),
    )


def fish(commands: Commands, fields: Fields) -> str:
    """Returns the script of fish, 3.1 and later."""
    lines = []
    quoted = shlex.quote

    def words(path: Sequence[str], entries: Sequence[tuple[str, str]]) -> None:
        at = f"__t5x_llm_at {' '.join(path)}; and " if path else ""
        condition = f"{at}test (count (commandline -opc)) -eq {len(path) + 1}"
        for name, help in entries:
            lines.append(f"complete -c t5x-llm -n '{condition}' -a {name} -d {quoted(help)}")

    words((), _first_words(commands))
    for c in commands:
        words(c.path, c.words)
        at = f"complete -c t5x-llm -n '__t5x_llm_at {' '.join(c.path)}'"
        if not c.words:
            lines.append(f"{at} -F")
        for flag in c.flags:
            lines.append(f"{at} -l {flag.name[2:]}{_fish_value(flag)} -d {quoted(flag.help)}")
        if c.gin:
            lines.append(f"{at} -a '(__t5x_llm_gin)'")
    cases = [
        f"        case {name}\n            set fields {' '.join(f)}" for name, f in fields.items()
    ]
    return _filled(
        _FISH, CLASSES=" ".join(fields), FIELDS="\n".join(cases), COMMANDS="\n".join(lines)
    )


def _fish_value(flag: Flag) -> str:
    if flag.values is None:
        return ""
    if flag.values == FILES:
        return " -r -F"
    return f" -x -a {shlex.quote(' '.join(flag.values))}" if flag.values else " -x"


def _filled(template: str, **parts: str) -> str:
    for name, text in parts.items():
        template = template.replace(f"@{name}@", text)
    return template


SCRIPTS: dict[str, Callable[[Commands, Fields], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
