"""Files of a kit that are filled in from templates: what the kit says, not what it keeps secret."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

from clients.approval import KEY
from fedmlic import spec
from sim.deployment.settings import Deployment, Device
from sim.toml import toml_value

TEMPLATES: Final = Path(__file__).parent / "templates"
_PLACE: Final = re.compile(r"@([A-Z_]+)@")

Code = Mapping[str, str]
"""``digest``, ``wheel``, ``python``, ``expires`` and ``authority_expires`` of a kit."""


def top_texts(deployment: Deployment, code: Code) -> dict[str, str]:
    """What lies at the top of a kit, for the operator."""
    rows = [f"| `devices/{name}/` | the owner of {name} | as above; {_how(d)} |" for name, d in _named(deployment)]
    pinned = (
        f"Devices run only code with the digest `{code['digest']}`; the settings of a run are free."
        if deployment.pin_code
        else "Devices run whatever code is sent (pin-code = false)."
    )
    values = {
        **_values(deployment, code),
        "DEVICE_ROWS": "\n".join(rows),
        "AUTHORITY_EXPIRY": code["authority_expires"],
        "PINNED": pinned,
    }
    return {"README.md": _fill("README.md", values)}


def server_texts(deployment: Deployment, code: Code) -> dict[str, str]:
    """What the server gets, but for certificates, keys and the app."""
    values = {
        **_values(deployment, code),
        "BIND_CAPABILITY": "CAP_NET_BIND_SERVICE" if deployment.server.port < 1024 else "",
        "FLWR_CONFIG": _flower_config(deployment),
    }
    files = {path.name: _fill(f"server/{path.name}", values) for path in sorted((TEMPLATES / "server").iterdir())}
    return {**files, "run.toml": _run(deployment), "kit.json": _public(deployment, code)}


def device_texts(deployment: Deployment, name: str, code: Code, *, own_key: bool) -> dict[str, str]:
    """What a device gets, but for certificates and its key.

    Args:
        deployment: the federation.
        name: of the device.
        code: of the kit.
        own_key: whether the kit made the device's private key.
    """
    device, client = deployment.devices[deployment.names.index(name)], deployment.client_of(name)
    program = ["fedmlic", "supernode"] if deployment.pin_code else ["flower-supernode"]
    values = {
        **_values(deployment, code),
        "DEVICE": name,
        "DATA": device.data,
        "THREADS": str(device.threads),
        "NODE_PORT": str(device.port),
        "MEMORY": f"MemoryMax={device.memory}\n" if device.memory else "",
        "ROOT": _root(device),
        "HOMES": "ProtectHome=read-only\n" if _is_below_homes(_root(device)) else "",
        "GROUPS": "video render" if device.device != "cpu" else "",
        "GPU": _GPU if device.device.startswith("cuda") else "",
        "SERVER_IPS": " ".join(each for each in deployment.server.names if _is_ip(each)),
        "SUPERNODE": " ".join(program),
        "SUPERNODE_FIRST": program[0],
        "SUPERNODE_REST": "".join(f'"{each}", ' for each in program[1:]),
        "KEY_NOTE": "" if own_key else _OWN_KEY,
        "SECRET_NOTE": _PRIVATE if own_key else "",
        "CODE_NOTE": _code_note(deployment, code),
        "LEAVES": (TEMPLATES / "leaves.md").read_text(encoding="utf-8").rstrip("\n"),
    }
    files = {path.name: _fill(f"device/{path.name}", values) for path in sorted((TEMPLATES / "device").iterdir())}
    return {
        **files,
        "node.toml": _node_config(deployment, device, client, code),
        "run.toml": _run(deployment),
        "kit.json": _public(deployment, code, name),
    }


def _fill(name: str, values: Mapping[str, str]) -> str:
    text = (TEMPLATES / name).read_text(encoding="utf-8")
    hardening = (TEMPLATES / "hardening.conf").read_text(encoding="utf-8").rstrip("\n")
    return _PLACE.sub(lambda match: {"HARDENING": hardening, **values}[match[1]], text)


def _values(deployment: Deployment, code: Code) -> dict[str, str]:
    return {
        "NAME": deployment.name,
        "PORT": str(deployment.server.port),
        "CONTROL_PORT": str(deployment.server.control_port),
        "ADDRESS": deployment.server.address,
        "WHEEL": code["wheel"],
        "PYTHON": code["python"],
        "EXPIRY": code["expires"],
    }


def _named(deployment: Deployment) -> list[tuple[str, Device]]:
    return list(zip(deployment.names, deployment.devices, strict=True))


def _how(device: Device) -> str:
    return "its owner has the private key" if device.public_key else "it holds the device's private key"


def _root(device: Device) -> str:
    """Where a device's images are, as far as its data say."""
    return str(spec.parse(device.data).arguments.get("root", "/data"))


def _is_below_homes(folder: str) -> bool:
    """Whether a folder is among those that systemd's ``ProtectHome=yes`` hides from a service."""
    return any(PurePosixPath(folder).is_relative_to(each) for each in ("/home", "/root", "/run/user"))


def _run(deployment: Deployment) -> str:
    """The settings of the first run, which are no secret: every device is told them when it starts."""
    return "".join(f"{key} = {toml_value(value)}\n" for key, value in deployment.run_settings().items())


def _flower_config(deployment: Deployment) -> str:
    return (
        f'[superlink]\ndefault = "{deployment.name}"\n\n[superlink.{deployment.name}]\n'
        f'address = "127.0.0.1:{deployment.server.control_port}"\nroot-certificates = "/etc/fedmlic-server/ca.crt"\n'
    )


def _node_config(deployment: Deployment, device: Device, client: int, code: Code) -> str:
    values: dict[str, Any] = {
        "data": device.data,
        "client": client,
        "home": "/var/lib/fedmlic-device/fedmlic",
        "device": device.device,
        "threads": device.threads,
    }
    if device.allow_plugins:
        values["allow-plugins"] = device.allow_plugins
    if device.allow_files:
        values["allow-files"] = device.allow_files
    if not device.allow_statistics:
        values["allow-statistics"] = False
    if deployment.pin_code:
        values[KEY] = code["digest"]
    return "".join(f"{key} = {toml_value(value)}\n" for key, value in values.items())


def _public(deployment: Deployment, code: Code, device: str = "") -> str:
    """What programs such as ``fedmlic doctor`` may know of the federation."""
    about: dict[str, Any] = {
        "format": 1,
        "name": deployment.name,
        "role": "device" if device else "server",
        "server": {
            "names": deployment.server.names,
            "port": deployment.server.port,
            "address": deployment.server.address,
        },
        "label-names": deployment.label_names,
        "image-size": deployment.image_size,
        "channels": deployment.channels,
        "code-digest": code["digest"],
        "python": code["python"],
        "certificates-end": code["expires"],
    }
    if device:
        about |= {"device": device, "client": deployment.client_of(device)}
    else:
        clients = {name: deployment.client_of(name) for name in deployment.names}
        about |= {"control-port": deployment.server.control_port, "devices": deployment.names, "clients": clients}
    return json.dumps(about, indent=1, ensure_ascii=False) + "\n"


def _code_note(deployment: Deployment, code: Code) -> str:
    if not deployment.pin_code:
        return "This device executes whatever that is (`pin-code = false`): trust them like who installs programs."
    return (
        f"This device accepts only code with the digest\n`{code['digest']}`\n(`{KEY}` in `node.toml`), that of the "
        "wheel in this folder; read it there. Everything else is\nrefused before it is unpacked. "
        "To compute the digest yourself: `unzip -d x *.whl && cd x && find clients fedmlic strategies\n-name '*.py' | "
        "LC_ALL=C sort | xargs sha256sum | sha256sum`. A new version needs your consent: a new `node.toml`."
    )


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


_OWN_KEY: Final = """
You made the key of this device yourself. Copy the private key here first: `install -m 600 YOUR-KEY device.key`.
Nobody else needs it, the operator neither.
"""

_PRIVATE: Final = """
Secret in this folder: `device.key`. Whoever has it can take this device's place. Delete the folder after installing.
"""

_GPU: Final = """    # A GPU of the host, as Docker's and Podman's NVIDIA toolkit offer it:
    deploy: {resources: {reservations: {devices: [{driver: nvidia, count: 1, capabilities: [gpu]}]}}}
"""
