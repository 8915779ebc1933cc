"""TOML -> frozen, validated settings; an error names the key, its value and the remedy.

Every setting has a sentence, a unit where it has one, and a default. ``config/node.toml``
shows the same keys with the same defaults; a test holds the two together.
"""

from __future__ import annotations

import tomllib
from difflib import get_close_matches
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from dicom_node.errors import ConfigError

_PRINTABLE = r"^[ -\[\]-~]+$"
"""ASCII without the backslash, which separates values, PS3.5 6.1 and 6.2."""
PeerName = Annotated[str, StringConstraints(min_length=1, max_length=64)]
AETitle = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=16, pattern=_PRINTABLE),
]
"""Without the spaces around it, which say nothing, PS3.5 6.2."""
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0)]
Strength = Annotated[float, Field(ge=0.0, le=1.0)]


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class NodeSection(_Section):
    """Who this node is and where it keeps its state."""

    ae_title: AETitle = "DESPECKLE"
    """Application Entity title that scanners and the PACS call."""
    station_name: Annotated[str, Field(min_length=1, max_length=16, pattern=_PRINTABLE)] = (
        "DESPECKLE"
    )
    """(0008,1010) *Station Name* in the provenance of derived objects."""
    state_directory: Path = Path("/var/lib/dicom-node")
    """Holds the spool and, unless `ledger.url` says otherwise, the ledger."""


class ReceiveSection(_Section):
    """The Storage SCP."""

    host: str = "0.0.0.0"  # noqa: S104 - a PACS node listens on the hospital network
    """Address to listen on."""
    plain: bool = True
    """Listen on `port`, without encryption."""
    port: Port = 11112
    """TCP port to listen on."""
    tls_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """TCP port to listen on with TLS; 2762 is the registered one, 0 is none. Needs `tls`."""
    require_called_ae_title: bool = True
    """Reject associations that call another AE title than ours."""
    require_known_caller: bool = False
    """Reject calling AE titles that are not the `ae_title` of a peer that `sends` or `receives`."""
    max_associations: Annotated[int, Field(ge=1, le=1000)] = 64
    """Associations served at once; further ones are rejected as a transient local limit."""
    max_pdu_bytes: Annotated[int, Field(ge=4096, le=1048576)] = 131072
    """Largest PDU that peers may send, and that they are sent, in bytes."""
    acse_timeout_seconds: Seconds = 10.0
    """How long a connected peer may take to request or release an association."""
    dimse_timeout_seconds: Seconds = 60.0
    """How long to wait for the next DIMSE message part."""
    network_timeout_seconds: Seconds = 60.0
    """How long an association may stay silent before it is aborted."""
    min_free_mb: Annotated[int, Field(ge=0)] = 1024
    """Below this much free disk in the spool, in MB, associations and C-STOREs are refused."""
    other_sop_classes: Literal["skip", "refuse"] = "skip"
    """Objects that are not ultrasound images (SR, SC, PDF): acknowledge and skip, or refuse."""

    @property
    def ports(self) -> tuple[int, ...]:
        """TCP ports listened on."""
        return (self.port,) * self.plain + (self.tls_port,) * bool(self.tls_port)


class TlsSection(_Section):
    """Certificates, PEM files, for `receive.tls_port` and peers with ``tls = true``."""

    certificate: str = ""
    """This node's certificate, followed by those between it and the authority."""
    key: str = ""
    """Its private key, unencrypted, for the node's user alone to read."""
    authorities: str = ""
    """Certificates of the authorities (or peers) that are trusted; none else is."""
    check_host_names: bool = True
    """A called peer's certificate has to bear its `host`."""


class Peer(_Section):
    """Another AE: a scanner, a router or a PACS."""

    ae_title: AETitle
    """Its Application Entity title."""
    host: str | None = None
    """Its host name or address; needed where the node calls it."""
    port: Port | None = None
    """Its TCP port; needed where the node calls it."""
    tls: bool = False
    """It is called with TLS. Needs `tls`."""
    sends: bool = True
    """May send objects to this node; false leaves it C-ECHO and commitment reports."""
    addresses: tuple[str, ...] = ()
    """Addresses or CIDR networks it may call from; empty means any."""
    bundle: str = ""
    """Model bundle for what it sends; empty means `despeckle.bundle`."""
    strength: Strength | None = None
    """Strength for what it sends; without one it is `despeckle.strength`."""
    receives: bool = False
    """Derived series are sent to it."""
    confirm: Literal["commitment", "query", "none"] = "commitment"
    """How storage is confirmed: Storage Commitment, C-FIND at IMAGE level, or the status."""
    commitment_wait_seconds: Seconds = 60.0
    """How long to wait for a report, or till the peer knows what it took, before asking again."""
    query_after_crash: bool = True
    """Ask by C-FIND which instances it already holds before repeating an interrupted send."""

    @field_validator("addresses")
    @classmethod
    def _addresses_parse(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for item in value:
            ip_network(item, strict=False)
        return value

    @model_validator(mode="after")
    def _reachable(self) -> Peer:
        if self.receives and (self.host is None or self.port is None):
            raise ValueError("a peer with receives = true needs host and port")
        return self

    def admits(self, address: str) -> bool:
        """Whether a connection from `address` may use this peer's AE title.

        An IPv4 caller of a socket for both (`receive.host` ``::``) has an IPv6 address with its
        own in it.
        """
        if not self.addresses:
            return True
        caller = ip_address(address)
        forms = (caller, getattr(caller, "ipv4_mapped", None) or caller)
        networks = [ip_network(item, strict=False) for item in self.addresses]
        return any(form in network for network in networks for form in forms)


class AssembleSection(_Section):
    """When a source series counts as complete."""

    quiet_seconds: Seconds = 10.0
    """No arrival for this long, with no open association that delivered into the series."""
    max_wait_seconds: Seconds = 900.0
    """Complete at the latest this long after its first arrival, whatever is still open."""


class DespeckleSection(_Section):
    """The student network."""

    bundle: str = "quality"
    """Name of a packaged bundle (quality, lesions), or the path of a bundle folder."""
    strength: Strength = 1.0
    """0 leaves every pixel as it was, 1 removes all the speckle that the student finds."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the student runs; auto takes the GPU where there is one."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Arithmetic of the network; auto takes the device's fastest if it passes the self-test."""
    batch_frames: Annotated[int, Field(ge=1, le=64)] = 4
    """Frames in one batch; bounds the memory."""
    threads: Annotated[int, Field(ge=0, le=256)] = 0
    """CPU threads for inference; 0 takes the cores that there are."""


class RegionsSection(_Section):
    """Which pixels may change."""

    without_regions: Literal["estimate", "skip"] = "estimate"
    """Without (0018,6011) *Sequence of Ultrasound Regions*: estimate the sector, or skip."""
    grey_tolerance: Annotated[int, Field(ge=0, le=64)] = 12
    """A pixel counts as grey where its largest and smallest colour value differ by at most this."""


class DeriveSection(_Section):
    """The derived object."""

    series_number_offset: Annotated[int, Field(ge=1)] = 1000
    """Added to (0020,0011) *Series Number* of the source."""
    series_description_label: Annotated[
        str, Field(min_length=1, max_length=48, pattern=_PRINTABLE)
    ] = "AI despeckled (research)"
    """Added to (0008,103E) *Series Description* of the source."""
    content_qualification: Literal["RESEARCH", "PRODUCT"] = "RESEARCH"
    """(0018,9004) *Content Qualification*."""
    equipment: Literal["source", "node"] = "source"
    """Whose Manufacturer, Model Name etc. the General Equipment module carries."""
    transfer_syntax: Literal["explicit-le", "rle", "jpeg-ls", "jpeg-2000"] = "explicit-le"
    """Lossless encoding of the derived pixels."""
    keep_private_groups: tuple[str, ...] = ()
    """Private creators whose elements are kept; others, and all behind the pixels, are removed."""


class RetrySection(_Section):
    """Repeating what failed for a passing reason."""

    first_seconds: Seconds = 5.0
    """Delay before the first repetition."""
    factor: Annotated[float, Field(ge=1.0, le=10.0)] = 2.0
    """Each further delay is this many times the one before, with full jitter."""
    longest_seconds: Seconds = 600.0
    """No delay is longer than this."""
    give_up_hours: Seconds = 72.0
    """Parked after failing for this long."""
    lease_seconds: Seconds = 60.0
    """A worker that gives no sign of life for this long loses its work to another."""


class SpoolSection(_Section):
    """How long files stay."""

    keep_hours: Annotated[float, Field(ge=0)] = 24.0
    """Source and derived files are kept this long after the last confirmation."""


class LedgerSection(_Section):
    """The queue and the record."""

    url: str = ""
    """SQLAlchemy URL; empty means SQLite in the state directory."""


class WatchSection(_Section):
    """Figures for a monitoring system over HTTP: ``/metrics`` and ``/healthz``."""

    host: str = "127.0.0.1"
    """Address to listen on; there is no password."""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """TCP port to listen on, 0 for none."""


class LogSection(_Section):
    """Structured logs on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level that is written."""
    format: Literal["json", "console"] = "json"
    """One JSON object a line, or text for people."""


class Settings(_Section):
    """All settings of one node."""

    node: NodeSection = NodeSection()
    receive: ReceiveSection = ReceiveSection()
    tls: TlsSection = TlsSection()
    peers: dict[PeerName, Peer] = {}
    assemble: AssembleSection = AssembleSection()
    despeckle: DespeckleSection = DespeckleSection()
    regions: RegionsSection = RegionsSection()
    derive: DeriveSection = DeriveSection()
    retry: RetrySection = RetrySection()
    spool: SpoolSection = SpoolSection()
    ledger: LedgerSection = LedgerSection()
    watch: WatchSection = WatchSection()
    log: LogSection = LogSection()

    @model_validator(mode="after")
    def _listens(self) -> Settings:
        if not (self.receive.plain or self.receive.tls_port):
            raise ValueError("receive.plain = false needs receive.tls_port; nobody could call")
        return self

    @model_validator(mode="after")
    def _senders_differ(self) -> Settings:
        """The ledger knows a sender by its title, so that alone decides how it is despeckled."""
        seen: dict[str, tuple[str, str, float | None]] = {}
        for name, peer in self.peers.items():
            if not peer.sends:
                continue
            first, *like_it = seen.setdefault(peer.ae_title, (name, peer.bundle, peer.strength))
            if like_it != [peer.bundle, peer.strength]:
                raise ValueError(
                    f"peers.{first} and peers.{name} send with one AE title, so that what they "
                    "send cannot be told apart; give both the same bundle and strength, or one of "
                    "them another title"
                )
        return self

    @property
    def uses_tls(self) -> bool:
        """Whether anything needs the certificates."""
        return bool(self.receive.tls_port) or any(peer.tls for peer in self.peers.values())

    @property
    def spool_directory(self) -> Path:
        """Root of the spool."""
        return self.node.state_directory / "spool"

    @property
    def ledger_url(self) -> str:
        """SQLAlchemy URL of the ledger."""
        return self.ledger.url or f"sqlite:///{self.node.state_directory / 'ledger.sqlite3'}"

    @property
    def destinations(self) -> dict[str, Peer]:
        """Peers that derived series are sent to, by name."""
        return {name: peer for name, peer in self.peers.items() if peer.receives}

    @property
    def bundles(self) -> dict[str, DespeckleSection]:
        """How each model bundle in use is loaded, by the key that names it first."""
        found = {self.despeckle.bundle: "despeckle.bundle"}
        for name, peer in self.peers.items():
            if peer.bundle:
                found.setdefault(peer.bundle, f"peers.{name}.bundle")
        return {
            key: self.despeckle.model_copy(update={"bundle": bundle})
            for bundle, key in found.items()
        }

    def for_sender(self, ae_title: str) -> Settings:
        """The settings with the bundle and strength for what the AE with this title sends."""
        peer = next((one for one in self.peers_of(ae_title) if one.sends), None)
        if peer is None:
            return self
        strength = self.despeckle.strength if peer.strength is None else peer.strength
        return self._despeckling(bundle=peer.bundle or self.despeckle.bundle, strength=strength)

    def of_any_strength(self) -> list[Settings]:
        """The settings with each strength in use, that of `despeckle.strength` first."""
        used = {self.despeckle.strength: None}
        used |= {peer.strength: None for peer in self.peers.values() if peer.strength is not None}
        return [self._despeckling(strength=strength) for strength in used]

    def with_strength(self, strength: float) -> Settings:
        """The settings with one strength, whoever sends."""
        peers = {n: p.model_copy(update={"strength": None}) for n, p in self.peers.items()}
        return self._despeckling(strength=strength).model_copy(update={"peers": peers})

    def _despeckling(self, **values: str | float) -> Settings:
        """The settings with other values of `despeckle`."""
        return self.model_copy(update={"despeckle": self.despeckle.model_copy(update=values)})

    def peers_of(self, ae_title: str) -> list[Peer]:
        """The peers that call themselves `ae_title`, each from addresses of its own perhaps."""
        return [peer for peer in self.peers.values() if peer.ae_title == ae_title]


def load(path: Path) -> Settings:
    """Read and validate a configuration file.

    Raises
    ------
    ConfigError
        Names the file or key, the value found and what to do.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            "config-unreadable", f"{path}: {error.strerror}; give --config a readable file"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            "config-not-toml", f"{path}: {error}; correct the syntax there"
        ) from error
    return parse(document, origin=str(path))


def parse(document: dict[str, Any], origin: str = "configuration") -> Settings:
    """Validate a parsed TOML document; see `load`."""
    try:
        return Settings.model_validate(document)
    except ValidationError as error:
        raise ConfigError("config-invalid", f"{origin}: " + "; ".join(_explain(error))) from error


def _explain(error: ValidationError) -> list[str]:
    """One sentence for each wrong key: its dotted name, its value and the remedy."""
    sentences = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            sentences.append(f"{key}: no such key; {_nearest(problem['loc'])}")
        elif problem["type"] == "missing":
            sentences.append(f"{key}: missing; add it")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "string_pattern_mismatch":
                message = "use printable ASCII characters only, and no backslash"
            about = [key] if key else []
            # A whole section, or the ledger's URL, may hold the password of the database.
            if not isinstance(problem["input"], dict) and problem["loc"][:1] != ("ledger",):
                about = [f"{key} = {problem['input']!r}"]
            sentences.append(": ".join([*about, message[:1].lower() + message[1:]]))
    return sentences


def _nearest(location: tuple[int | str, ...]) -> str:
    """The keys that the section of a wrong key does have, the most similar first."""
    section: type[BaseModel] = Settings
    for part in location[:-1]:
        if part == "peers":
            section = Peer
            break
        section = type(getattr(Settings(), str(part)))
    known = sorted(section.model_fields)
    close = get_close_matches(str(location[-1]), known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known keys here: {', '.join(known)}"
