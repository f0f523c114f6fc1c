#!/bin/sh
# Sets up the server of @NAME@ on this machine. Run it as root, in this folder; running it again updates everything.
# Nothing is started. Variables: PYTHON (python3), NGINX (/usr/sbin/nginx), ENVIRONMENT (/opt/fedmlic, used if it is there).
set -eu
cd "$(dirname "$0")"
[ "$(id -u)" = 0 ] || { echo "Run it as root: it makes users and installs services." >&2; exit 2; }
[ -x "${NGINX:-/usr/sbin/nginx}" ] || { echo "nginx is not installed: apt-get install nginx-light" >&2; exit 2; }
ENVIRONMENT="${ENVIRONMENT:-/opt/fedmlic}"

for user in fedmlic-server fedmlic-proxy; do
    getent passwd "$user" >/dev/null || useradd --system --user-group --home-dir /nonexistent --no-create-home --shell /usr/sbin/nologin "$user"
done
if [ ! -x "$ENVIRONMENT/bin/fedmlic" ] || [ -z "${KEEP_ENVIRONMENT:-}" ]; then
    [ -x "$ENVIRONMENT/bin/python" ] || "${PYTHON:-python3}" -m venv "$ENVIRONMENT"
    "$ENVIRONMENT/bin/python" -m pip install --quiet --constraint constraints.txt @WHEEL@
fi
[ "$ENVIRONMENT" = /opt/fedmlic ] || ln -sfn "$ENVIRONMENT" /opt/fedmlic

install -d -m 0755 /etc/fedmlic-server /etc/fedmlic-server/devices
install -m 0644 ca.crt proxy.crt superlink.crt nginx.conf devices.map nftables.conf run.toml kit.json /etc/fedmlic-server/
install -m 0600 -o fedmlic-proxy -g fedmlic-proxy proxy.key /etc/fedmlic-server/
install -m 0600 -o fedmlic-server -g fedmlic-server superlink.key /etc/fedmlic-server/
for key in /etc/fedmlic-server/devices/*.pub; do  # of devices that left the federation
    [ -f "devices/$(basename "$key")" ] || rm -f "$key"
done
install -m 0644 devices/*.pub /etc/fedmlic-server/devices/
install -m 0755 fedmlic-admin /usr/local/bin/fedmlic-admin
rm -rf /etc/fedmlic-server/app
cp -R app /etc/fedmlic-server/app
chmod -R u=rwX,go=rX /etc/fedmlic-server/app
if [ -d /etc/logrotate.d ]; then install -m 0644 logrotate.conf /etc/logrotate.d/fedmlic; fi
if [ -d /etc/systemd/system ]; then
    install -m 0644 fedmlic-superlink.service fedmlic-proxy.service /etc/systemd/system/
fi
if command -v systemctl >/dev/null; then systemctl daemon-reload || true; fi
echo "Installed. Start it with: systemctl enable --now fedmlic-superlink fedmlic-proxy"
