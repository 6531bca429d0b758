"""Completion of command lines in bash, zsh and fish.

The shells' functions hand over the line up to the cursor, and get candidates for its last word:
lines of KIND, CANDIDATE and DESCRIPTION with tabs between. Splitting the line here, and not in
three shells, is what makes `HANDLE:` and `KEY=VALUE` work, where bash sees several words.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Final

import click
from click.shell_completion import CompletionItem, ShellComplete

VARIABLE: Final = "_TAPDISK_COMPLETE"
LINE: Final = "_TAPDISK_LINE"
BREAKS: Final = "_TAPDISK_BREAKS"

_BASH: Final = r"""
_tapdisk_completion() {
    local line kind
    COMPREPLY=()
    while IFS= read -r line; do
        IFS=$'\t' read -r kind line _ <<<"$line"
        COMPREPLY+=("$line")
        [[ $kind == file ]] && compopt -o filenames
    done < <(
        _TAPDISK_COMPLETE=bash _TAPDISK_LINE="${COMP_LINE:0:COMP_POINT}" \
            _TAPDISK_BREAKS="$COMP_WORDBREAKS" "$1" 2>/dev/null
    )
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[:=] ]] && compopt -o nospace
    return 0
}
complete -F _tapdisk_completion tapdisk
"""

_ZSH: Final = r"""
#compdef tapdisk

_tapdisk_completion() {
    local line item
    local -a described plain open
    for line in "${(@f)$(
        _TAPDISK_COMPLETE=zsh \
            _TAPDISK_LINE="${(j: :)words[1,CURRENT-1]} $QIPREFIX$IPREFIX$PREFIX" \
            "${words[1]}" 2>/dev/null
    )}"; do
        line="${line#*$'\t'}"
        item="${line%%$'\t'*}"
        if [[ -z $item ]]; then
            continue
        elif [[ $item == *[/:=] ]]; then
            open+=("$item")
        elif [[ $line == *$'\t'?* ]]; then
            described+=("${item//:/\\:}:${line#*$'\t'}")
        else
            plain+=("$item")
        fi
    done
    # a tilde in front stays one: what compadd is given, it quotes
    compset -P '\~/' && plain=("${(@)plain#\~/}") open=("${(@)open#\~/}")
    (( $#described )) && _describe -V tapdisk described
    (( $#plain )) && compadd -a plain
    (( $#open )) && compadd -S '' -a open
    (( $#described + $#plain + $#open ))
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _tapdisk_completion "$@"
else
    compdef _tapdisk_completion tapdisk
fi
"""

_FISH: Final = r"""
function __tapdisk_completion
    set --local line (commandline -cp | string collect)
    env _TAPDISK_COMPLETE=fish _TAPDISK_LINE=$line tapdisk 2>/dev/null |
        string replace --regex '^\w+\t' ''
end
complete --command tapdisk --no-files --arguments '(__tapdisk_completion)'
"""

SCRIPTS: Final[Mapping[str, str]] = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


class _Completion(ShellComplete):
    """click's search for what can follow, asked directly."""

    name = "tapdisk"
    source_template = ""


def script(shell: str) -> str:
    """What a shell has to read.

    Args:
        shell: a key of `SCRIPTS`.
    """
    return SCRIPTS[shell].lstrip("\n")


def complete(group: click.Command, environment: Mapping[str, str]) -> str:
    """The candidates for the last word of a line.

    Args:
        group: the program.
        environment: with the variables that the shells' functions set.

    Returns:
        Lines of three columns: "plain" or "file", the candidate, and its description or nothing.
    """
    words, incomplete, quoted = split_line(environment.get(LINE, ""))
    items = _Completion(group, {}, "tapdisk", VARIABLE).get_completions(words[1:], incomplete)
    option, equals, _ = incomplete.partition("=")
    front = option + equals if option.startswith("--") and equals else ""
    # bash takes what stands before a : or = for words of its own, but not in quotes
    breaks = "" if quoted else environment.get(BREAKS, "")
    cut = max((incomplete.rfind(c) + 1 for c in ":=" if c in breaks), default=0)
    return "".join(_line(front + item.value, item, cut) for item in items)


def _line(value: str, item: CompletionItem[str], cut: int) -> str:
    if not value.isprintable():  # one that cannot be handed over in lines, or is not text
        return ""
    description = " ".join((item.help or "").split())
    return f"{item.type}\t{value[cut:]}\t{description}\n"


def split_line(line: str) -> tuple[list[str], str, bool]:
    """The complete words of a command line, and the last one, which may be empty.

    Args:
        line: up to the cursor, quoted as it was typed; a quote may still be open.

    Returns:
        The words, the last word, and whether that is in quotes.
    """
    lexer = shlex.shlex(line, posix=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    words: list[str] = []
    try:
        words.extend(lexer)
    except ValueError as exc:  # "No closing quotation", "No escaped character"
        return words, str(lexer.token), "quotation" in str(exc)
    if not words or (line[-1].isspace() and not line.endswith("\\ ")):
        return words, "", False
    return words[:-1], words[-1], False
