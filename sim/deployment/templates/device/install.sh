#!/bin/sh
# Sets up the device @DEVICE@ of @NAME@ on this machine. Run it as root, in this folder; running it again updates everything.
# Nothing is started. Variables: PYTHON (python3), ENVIRONMENT (/opt/fedmlic), KEEP_ENVIRONMENT=1 (install no packages),
# PIP_ARGUMENTS (such as --system-site-packages wheels of a Jetson; see docs/devices.md).
set -eu
cd "$(dirname "$0")"
[ "$(id -u)" = 0 ] || { echo "Run it as root: it makes a user and installs a service." >&2; exit 2; }
[ -f device.key ] || { echo "Put the private key that belongs to device.pub here, as device.key." >&2; exit 2; }
ENVIRONMENT="${ENVIRONMENT:-/opt/fedmlic}"

getent passwd fedmlic-device >/dev/null || useradd --system --user-group --home-dir /nonexistent --no-create-home --shell /usr/sbin/nologin fedmlic-device
if [ ! -x "$ENVIRONMENT/bin/fedmlic" ] || [ -z "${KEEP_ENVIRONMENT:-}" ]; then
    [ -x "$ENVIRONMENT/bin/python" ] || "${PYTHON:-python3}" -m venv "$ENVIRONMENT"
    # shellcheck disable=SC2086
    "$ENVIRONMENT/bin/python" -m pip install --quiet --constraint constraints.txt ${PIP_ARGUMENTS:-} @WHEEL@
fi
[ "$ENVIRONMENT" = /opt/fedmlic ] || ln -sfn "$ENVIRONMENT" /opt/fedmlic

install -d -m 0755 /etc/fedmlic-device
install -m 0644 ca.crt node.toml device.pub kit.json /etc/fedmlic-device/
install -m 0600 -o fedmlic-device -g fedmlic-device device.key /etc/fedmlic-device/
if [ -d /etc/systemd/system ]; then
    install -m 0644 fedmlic-device.service /etc/systemd/system/
    for group in video render; do  # a unit with a group that is not there does not start
        getent group "$group" >/dev/null || sed -i "/^SupplementaryGroups=/s/ *$group//" /etc/systemd/system/fedmlic-device.service
    done
fi
if command -v systemctl >/dev/null; then systemctl daemon-reload || true; fi
echo "Installed. Start it with: systemctl enable --now fedmlic-device"
