#!/bin/sh
# Sets up the device @DEVICE@ of @NAME@ on this machine. Run it as root, in this folder; running it again updates everything.
# Nothing is started. Variables: PYTHON (python3), ENVIRONMENT (/opt/fedmlic), KEEP_ENVIRONMENT=1 (install no packages),
# PIP_ARGUMENTS (further arguments of pip install, such as --find-links and a folder of wheels), REPLACE_NODE=1 (take this
# folder's node.toml as it is), REPLACE_UNIT=1 (take this folder's fedmlic-device.service as it is).
set -eu
cd "$(dirname "$0")"
[ "$(id -u)" = 0 ] || { echo "Run it as root: it makes a user and installs a service." >&2; exit 2; }
[ -f device.key ] || { echo "Put the private key that belongs to device.pub here, as device.key." >&2; exit 2; }
ENVIRONMENT="${ENVIRONMENT:-/opt/fedmlic}"

# What its owner refuses or wants, such as allow-statistics = false, must not end with an update, nor may one allow more.
node=/etc/fedmlic-device/node.toml
if [ -f "$node" ] && [ -z "${REPLACE_NODE:-}" ]; then
    pin='^code-digest = '  # what it says may change, not whether it is there: without it, any code runs
    { grep -q "$pin" node.toml && grep -q "$pin" "$node"; } || pin='^$'
    other() { grep -vxF -f "$1" "$2" | grep -v "$pin" | grep '[^[:space:]]' | sed "s/^/$3 /"; }
    changes="$(other node.toml "$node" - || true; other "$node" node.toml + || true)"
    if [ -n "$changes" ]; then
        echo "Expected node.toml here to have the lines of the installed $node, got others (- there, + here):" >&2
        echo "$changes" >&2
        echo "Nothing was changed. Make node.toml here as this device's owner wants it to be, and run this again with" >&2
        echo "REPLACE_NODE=1: it is then taken as it is." >&2
        exit 2
    fi
fi

# Earlier units told their owners to write limits, such as IPAddressDeny=any, into the file itself: these must not end with
# an update either. Lines that a kit fills in are not compared. REPLACE_UNIT=1 takes this folder's unit as it is.
unit=/etc/systemd/system/fedmlic-device.service
if [ -f "$unit" ] && [ -z "${REPLACE_UNIT:-}" ]; then
    filled='^(Description=|Environment=OMP_NUM_THREADS=|ExecStart=|ReadOnlyPaths=-|SupplementaryGroups=( *(video|render))*$)'
    lost="$(grep -vxF -f fedmlic-device.service "$unit" | grep -vE "$filled" | grep '^[[:space:]]*[^#;[:space:]]' | sed 's/^/- /')"
    if [ -n "$lost" ]; then
        echo "Expected fedmlic-device.service here to have all settings of the installed $unit, got one without:" >&2
        echo "$lost" >&2
        echo "Nothing was changed. Write what must stay into 'systemctl edit fedmlic-device', which no update changes, and" >&2
        echo "run this again with REPLACE_UNIT=1: fedmlic-device.service is then taken as it is." >&2
        exit 2
    fi
fi

getent passwd fedmlic-device >/dev/null || useradd --system --user-group --home-dir /nonexistent --no-create-home --shell /usr/sbin/nologin fedmlic-device
if [ ! -x "$ENVIRONMENT/bin/fedmlic" ] || [ -z "${KEEP_ENVIRONMENT:-}" ]; then
    [ -x "$ENVIRONMENT/bin/python" ] || "${PYTHON:-python3}" -m venv "$ENVIRONMENT"
    # shellcheck disable=SC2086
    "$ENVIRONMENT/bin/python" -m pip install --quiet --constraint constraints.txt ${PIP_ARGUMENTS:-} @WHEEL@
fi
[ "$ENVIRONMENT" = /opt/fedmlic ] || ln -sfn "$ENVIRONMENT" /opt/fedmlic

install -d -m 0755 /etc/fedmlic-device
install -m 0644 ca.crt node.toml device.pub kit.json run.toml /etc/fedmlic-device/
install -m 0600 -o fedmlic-device -g fedmlic-device device.key /etc/fedmlic-device/
install -d -m 0700 -o fedmlic-device -g fedmlic-device /var/lib/fedmlic-device /var/lib/fedmlic-device/empty
install -m 0755 fedmlic-device /usr/local/bin/fedmlic-device
if [ -d /etc/systemd/system ]; then
    install -m 0644 fedmlic-device.service /etc/systemd/system/
    for group in video render; do  # a unit with a group that is not there does not start
        getent group "$group" >/dev/null || sed -i "/^SupplementaryGroups=/s/ *$group//" /etc/systemd/system/fedmlic-device.service
    done
fi
if command -v systemctl >/dev/null; then systemctl daemon-reload || true; fi
echo "Installed. Look whether it is ready: fedmlic-device doctor. Start it with: systemctl enable --now fedmlic-device"
