"""What an operator writes about a deployment: the file federation.toml.

::

    name = "eye-study"
    label-names = ["cataract", "glaucoma", "myopia"]
    image-size = 128

    [server]
    names = ["fed.example.org", "192.0.2.10"]     # the first is the one that devices use

    [[devices]]
    name = "eye-clinic"
    data = "folder(root='/data/eyes', image_size=128)"

    [[devices]]
    name = "university"
    data = "folder(root='/srv/images', image_size=128)"
    public-key = "keys/university.pub"            # its owner made the key; no private key of it is in the kit
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fedmlic import spec
from fedmlic.errors import InputError
from fedmlic.experiment import explain, split_settings
from fedmlic.record import open_run

_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
_HOST: Final = re.compile(
    r"(?=.{1,253}$)(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
)

_FOLLOWS: Final = "follows from the rest of the file"
OWN_SETTINGS: Final = {
    "dataset": _FOLLOWS,
    "label-names": _FOLLOWS,
    "cohort-size": _FOLLOWS,
    "node-ids": "is known once keys are registered ('fedmlic-admin run --bind' sets it)",
    "engine": "is flower here",
    "out": "is said with each run ('fedmlic-admin run')",
}
"""Settings of a run that [run] cannot have, and why."""

OF_SIMULATIONS: Final = frozenset(
    {"dataset", "partition", "regime", "num_clients", "cohort_size", "cohort", "label_names", "single_client"}
)
"""Settings of an experiment that say who has which images and labels, which devices decide by themselves."""


def _is_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        msg = f"Expected a name of up to 32 small letters, digits and hyphens, such as 'eye-clinic', got {text!r}."
        raise InputError(msg)
    return text


def _is_host(text: str) -> str:
    """A DNS name or an IP address, as certificates have them."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        pass
    looks_like_ip = re.fullmatch(r"[\d.]+", text) is not None or ":" in text
    if looks_like_ip or not _HOST.fullmatch(text):
        msg = (
            f"Expected server.names to be DNS names in small letters or IP addresses, without scheme and port, got "
            f"{text!r}. Write 'fed.example.org'; the port is server.port."
        )
        raise InputError(msg)
    return text


def _is_label(text: str) -> str:
    if not text.strip() or text != text.strip() or any(c in text for c in ",'\"\\\n") or not text.isprintable():
        msg = f"Expected a label without commas, quotes, line breaks, or blanks at its ends, got {text!r}."
        raise InputError(msg)
    return text


Name = Annotated[str, AfterValidator(_is_name)]
HostName = Annotated[str, AfterValidator(_is_host)]
Label = Annotated[str, AfterValidator(_is_label)]
Port = Annotated[int, Field(ge=1, le=65535)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=lambda name: name.replace("_", "-"))


class Server(_Table):
    """The one machine that others can reach.

    Attributes:
        names: DNS names and addresses under which devices reach it, all of them in its certificate.
        port: of the proxy, the only one that is open.
        control_port: of the SuperLink, on loopback only.
    """

    names: Annotated[tuple[HostName, ...], Field(min_length=1)]
    port: Port = 8443
    control_port: Port = 9091

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if self.port == self.control_port:
            msg = f"Expected port and control-port of the server to differ, got {self.port} for both."
            raise InputError(msg)
        return self

    @property
    def address(self) -> str:
        """``host:port`` as devices write it."""
        host = self.names[0]
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


class Device(_Table):
    """One owner's machine and images.

    Attributes:
        name: of its folder in the kit, and what logs call it.
        data: its images, as ``--node-config`` has them.
        client: its client id (default: its place in the file).
        public_key: file with its owner's OpenSSH public key or signing request; without it the kit makes a key pair.
        device: ``auto``, ``cpu``, ``cuda:0``, ...
        threads: torch threads.
        memory: most memory of the service, as systemd writes it, such as ``6G`` (default: no limit).
        port: of its SuperNode's own interface, on loopback only.
        allow_plugins: code from outside the catalogues that a run may use there.
        allow_files: folders below which a run may name files of it, separated by commas.
        allow_statistics: whether the experiment decides if statistics of labels and features leave; else none do.
    """

    name: Name
    data: str
    client: Annotated[int, Field(ge=0)] | None = None
    public_key: str | None = None
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    threads: Annotated[int, Field(ge=1)] = 1
    memory: Annotated[str, Field(pattern=r"^\d+[KMGT]$")] | None = None
    port: Port = 9094
    allow_plugins: str = ""
    allow_files: str = ""
    allow_statistics: bool = True

    @model_validator(mode="after")
    def _data_is_a_call(self) -> Self:
        if any(c in self.data + self.allow_plugins + self.allow_files for c in '"\n\\'):
            msg = (
                f"Expected data, allow-plugins and allow-files of {self.name} without double quotes, backslashes and "
                f"line breaks, got {self.data!r}. Write \"folder(root='/data', image_size=128)\"."
            )
            raise InputError(msg)
        spec.parse(self.data, f"data of {self.name}")
        return self


class Deployment(_Table):
    """A federation of devices, as federation.toml describes it.

    Attributes:
        name: of the federation; certificates and services carry it.
        label_names: the label space, in order.
        image_size: edge of the images, pixels.
        channels: 3 or 1.
        pin_code: whether devices run only the code that this kit was made with.
        days: validity of the server's certificates.
        authority_days: validity of the certificate authority.
        server: the server.
        devices: at least one.
        run_of: folder of a run whose settings the first run has too; those of ``run`` win.
        run: settings of the first run, as run-config has them.
    """

    name: Name
    label_names: Annotated[tuple[Label, ...], Field(min_length=1)]
    image_size: Annotated[int, Field(ge=1)]
    channels: Literal[1, 3] = 3
    pin_code: bool = True
    days: Annotated[int, Field(ge=1, le=3650)] = 365
    authority_days: Annotated[int, Field(ge=1, le=7300)] = 3650
    server: Server
    devices: Annotated[tuple[Device, ...], Field(min_length=1)]
    run_of: str = ""
    run: dict[str, bool | int | float | str] = Field(default_factory=dict)

    @field_validator("run")
    @classmethod
    def _dashes(cls, values: dict[str, Any]) -> dict[str, Any]:
        return _dashed(values)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        clients = [str(client) for client in self.clients.values()]
        problems = [
            f"Expected every device to have a {what} of its own, got {value!r} twice."
            for what, values in (("name", self.names), ("client", clients))
            for value in sorted({each for each in values if values.count(each) > 1})
        ]
        if len(set(self.label_names)) < len(self.label_names):
            problems.append(f"Expected label-names to name every label once, got {', '.join(self.label_names)}.")
        if self.days > self.authority_days:
            problems.append(f"Expected days to be at most authority-days ({self.authority_days}), got {self.days}.")
        problems += [problem for device in self.devices for problem in self._image_problems(device)]
        problems += [
            f"Expected [run] without {key}, which {why}, got {self.run[key]!r}. Delete it."
            for key, why in OWN_SETTINGS.items()
            if key in self.run
        ]
        needed = self.run.get("min-hosts", 1)
        if isinstance(needed, int) and needed > len(self.devices):
            problems.append(
                f"Expected run.min-hosts to be at most the number of devices ({len(self.devices)}), got {needed}."
            )
        problems += [
            f"Expected run.{key} without double quotes, backslashes and line breaks, got {value!r}. Use single quotes."
            for key, value in self.run.items()
            if isinstance(value, str) and any(c in value for c in '"\\\n')
        ]
        if problems:
            raise InputError(" ".join(problems))
        return self

    def _image_problems(self, device: Device) -> list[str]:
        """Where the data set's size or channels, written or by default, are not the federation's."""
        try:
            arguments = _arguments_of(device.data)
        except InputError as error:
            return [f"data of {device.name}: {error}"]
        wanted = {"image_size": self.image_size, "channels": self.channels}
        problems = []
        for key, value in wanted.items():
            found = arguments.get(key)
            if found not in (None, value):  # no set: a list can be written here
                how = "" if key in spec.parse(device.data).arguments else " by default"
                problems.append(
                    f"Expected the images of {device.name} to have {key.replace('_', '-')} {value}, got "
                    f"{key}={found}{how}. Write {key}={value} in its data."
                )
        return problems

    @property
    def names(self) -> list[str]:
        """Names of the devices, in the file's order."""
        return [device.name for device in self.devices]

    @property
    def clients(self) -> dict[int, int]:
        """Client id by place in the file."""
        return {place: place if d.client is None else d.client for place, d in enumerate(self.devices)}

    def client_of(self, name: str) -> int:
        """The client that a device is."""
        return self.clients[self.names.index(name)]

    def run_settings(self) -> dict[str, bool | int | float | str]:
        """Settings of the first run, as ``--run-config`` takes them."""
        channels = "" if self.channels == 3 else f", channels={self.channels}"
        return {
            "num-rounds": 3,
            "node-timeout": 600.0,
            "round-timeout": 900.0,
            "min-hosts": len(self.devices),
            **self.run,
            "dataset": f"on_devices(image_size={self.image_size}{channels})",
            "label-names": ",".join(self.label_names),
            "cohort-size": 0,
        }


def _arguments_of(data: str) -> dict[str, Any]:
    """All arguments of a data set; of one from outside the catalogue, which may not be here, those that are written."""
    written = spec.parse(data, "data")
    return written.arguments if "." in written.name else spec.parse(spec.resolve("dataset", data)).arguments


def _dashed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the keys that run-config has."""
    return {key.replace("_", "-"): value for key, value in values.items()}


def _settings_of(run: Path) -> dict[str, Any]:
    """What a run's experiment says of training, merging and evaluating.

    Raises:
        InputError: the folder holds no run.
    """
    return _dashed(open_run(run).settings()[0].model_dump(exclude=set(OF_SIMULATIONS)))


def read_deployment(path: Path) -> Deployment:
    """Read and check federation.toml.

    Raises:
        InputError: it is missing, no TOML, or describes no federation; all problems are named.
    """
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        msg = (
            f"Expected {path} to be a description of a federation, got no such file. See docs/examples/federation.toml."
        )
        raise InputError(msg) from None
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        msg = f"Expected {path} to be TOML, got an error: {error}."
        raise InputError(msg) from None
    try:
        if isinstance(values.get("run-of"), str) and isinstance(values.get("run", {}), dict):
            values["run"] = {**_settings_of(path.parent / values["run-of"]), **_dashed(values.get("run", {}))}
        found = Deployment.model_validate(values)
        split_settings(found.run_settings())
    except ValidationError as error:
        msg = f"Expected {path} to describe a federation, got: {explain(error)}"
        raise InputError(msg) from None
    except InputError as error:
        msg = f"Expected {path} to describe a federation, got: {error}"
        raise InputError(msg) from None
    return found
