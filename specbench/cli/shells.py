"""The scripts that shells source. Each asks `specbench completion SHELL LINE` for whole words, and for paths completes files."""

BASH = """\
# specbench's completion: source <(specbench completion bash)
_specbench() {
    local line="${COMP_LINE:0:COMP_POINT}" IFS=$'\\n'
    local word="${line##* }"
    COMPREPLY=($("$1" completion bash "$line" 2>/dev/null))
    local whole="${word%"${word##*[=:]}"}"  # bash replaces only what comes after = and :
    COMPREPLY=("${COMPREPLY[@]#"$whole"}")
}
complete -o nospace -o bashdefault -o default -F _specbench specbench"""

ZSH = """\
#compdef specbench
# specbench's completion: source <(specbench completion zsh)
_specbench() {
    local -a found
    found=("${(@f)$("$words[1]" completion zsh "${BUFFER[1,CURSOR]}" 2>/dev/null)}")
    if [[ -n "$found" ]]; then
        compadd -Q -S '' -- "$found[@]"
    else
        compset -P '*='
        _files
    fi
}
compdef _specbench specbench"""

FISH = """\
# specbench's completion: specbench completion fish > ~/.config/fish/completions/specbench.fish
function __specbench_complete
    set -l found (specbench completion fish (commandline -cp | string collect) 2>/dev/null | string trim -r)
    if test (count $found) -gt 0
        printf '%s\\n' $found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete -c specbench -f -a '(__specbench_complete)'"""

SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}
