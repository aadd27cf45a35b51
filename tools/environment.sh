# Sourced by the scripts beside it: makes an environment beside README.md and installs the package.

# The interpreter: $PYTHON, or the first supported one on the PATH.
find_python() {
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "aimp_tf needs Python 3.11, 3.12 or 3.13; ${PYTHON:-none on the PATH} is not one. Name one: PYTHON=/path/to/python3.12 $0" >&2
    return 1
}

version() {
    "$1" --version 2>&1
}

# install ENVIRONMENT REQUIREMENT [OPTIONS OF pip], such as .venv ".[test]"
install() {
    environment=$1
    shift
    if [ ! -x "$environment/bin/pip" ] ||
        { [ -n "${PYTHON:-}" ] && [ "$(version "$environment/bin/python")" != "$(version "$PYTHON")" ]; }; then
        python=$(find_python)
        echo "Making the environment $environment with $("$python" --version)."
        rm -rf "$environment"
        "$python" -m venv "$environment"
    fi
    echo "Installing aimp_tf and what it needs; the first time takes some minutes."
    # What an earlier build left would end up in the wheel.
    rm -rf build
    "$environment/bin/pip" install --quiet --disable-pip-version-check "$@"
}
