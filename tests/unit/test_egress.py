"""The egress guard: what is refused, what a setting allows, and that a connection goes where the judgment was made."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path

import httpx2
import pytest

from jobstream.egress import AddressRefused, EgressPolicy
from jobstream.errors import ConfigurationError
from jobstream_workers.egress import guarded_client
from tests.unit.scripted_server import says, serving, stalls

PRIVATE = """
    0.0.0.0 10.1.2.3 100.64.0.1 100.100.100.200 127.0.0.1 127.255.0.1 169.254.169.254 172.16.0.1 192.0.0.192 192.0.2.1
    192.88.99.1 192.168.1.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.250 240.0.0.1 255.255.255.255
    168.63.129.16
    :: ::1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:169.254.169.254 ::ffff:0:127.0.0.1 64:ff9b::10.0.0.1 64:ff9b:1::8.8.8.8
    100::1 2001::1 2001:db8::1 2002:7f00:1:: 2002:a9fe:a9fe:: 3fff::1 5f00::1 fc00::1 fd00:ec2::254 fe80::1 fe80::1%1
    fec0::1 ff02::1 ff0e::1
""".split()

PUBLIC = """
    1.1.1.1 8.8.8.8 93.184.216.34 2606:4700:4700::1111 2a00:1450:4001::1 ::ffff:8.8.8.8 64:ff9b::8.8.8.8 2002:808:808::
""".split()


class Names:
    """A resolver of its own: `loop.getaddrinfo` answers from here, and counts."""

    def __init__(self, names: Mapping[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
        self.names = dict(names)
        self.asked: list[str] = []
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", self.getaddrinfo)

    async def getaddrinfo(
        self, host: str, port: int, **hints: int
    ) -> list[tuple[socket.AddressFamily, int, int, str, tuple[str, int]]]:
        self.asked.append(host)
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in self.names.get(host, [host])
        ]


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    assert not EgressPolicy().allows(ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_allowed(address: str) -> None:
    assert EgressPolicy().allows(ip_address(address))


@pytest.mark.parametrize("host", "127.1 0177.0.0.1 0x7f000001 2130706433 0 ::1 ::ffff:7f00:1 10.0.0.1".split())
async def test_every_spelling_of_a_private_address_is_refused(host: str) -> None:
    with pytest.raises(AddressRefused) as caught:
        await EgressPolicy().resolve(host, 80)
    assert (caught.value.http_status, caught.value.problem_code) == (422, "address-refused")


def test_a_policy_is_read_from_a_list() -> None:
    assert EgressPolicy.parse("") == EgressPolicy.parse(" , ") == EgressPolicy()
    assert EgressPolicy.parse("10.0.0.0/8,fd00::/8 ,192.168.1.1, Example.org.,my_host") == EgressPolicy(
        networks=tuple(map(ip_network, ("10.0.0.0/8", "fd00::/8", "192.168.1.1/32"))),
        hosts=frozenset({"example.org", "my_host"}),
    )


@pytest.mark.parametrize("allowed", ["10.0.0.0/33", "10.0.0.1/8", "*", "*.example.org", "http://a", "a b", "a:80", "ü"])
def test_a_policy_that_cannot_be_meant_is_an_error(allowed: str) -> None:
    with pytest.raises(ConfigurationError):
        EgressPolicy.parse(f"example.org, {allowed}")


def test_an_allowed_network_holds_for_every_wrapping_of_its_addresses() -> None:
    policy = EgressPolicy.parse("10.0.0.0/8")
    assert all(map(policy.allows, map(ip_address, ("10.1.1.1", "::ffff:10.1.1.1", "64:ff9b::10.1.1.1"))))
    assert not any(map(policy.allows, map(ip_address, ("127.0.0.1", "::ffff:192.168.0.1", "::1"))))


async def test_an_allowed_name_may_be_private_and_no_other_name(monkeypatch: pytest.MonkeyPatch) -> None:
    Names({"Inside.test.": ["10.0.0.1"], "not-inside.test": ["10.0.0.1"]}, monkeypatch)
    policy = EgressPolicy.parse("inside.TEST")
    assert await policy.resolve("Inside.test.", 80) == (ip_address("10.0.0.1"),)
    with pytest.raises(AddressRefused):
        await policy.resolve("not-inside.test", 80)


async def test_one_private_address_spoils_a_name_and_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    Names({"mixed.test": ["8.8.8.8", "10.9.8.7"]}, monkeypatch)
    with pytest.raises(AddressRefused, match=r"mixed\.test") as caught:
        await EgressPolicy().resolve("mixed.test", 80)
    assert "10.9.8.7" not in caught.value.detail


async def test_a_name_without_addresses_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    Names({"empty.test": []}, monkeypatch)
    async with guarded_client(EgressPolicy(), timeout=5) as client:
        with pytest.raises(httpx2.ConnectError, match=r"empty\.test has no address"):
            await client.get("http://empty.test/")


@pytest.mark.parametrize("host", ["a..b", "x" * 64 + ".test"])
async def test_a_name_that_cannot_be_one_is_not_resolved(host: str) -> None:
    with pytest.raises(OSError, match="not a host name"):
        await EgressPolicy().resolve(host, 80)


async def test_the_connection_goes_to_the_address_that_was_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names({"rebinding.test": ["127.0.0.1"]}, monkeypatch)
    async with serving({"/": says(b"ok")}) as server:
        url = server.url("/", host="rebinding.test")
        async with guarded_client(EgressPolicy.parse("127.0.0.1"), timeout=5) as client:
            assert (await client.get(url)).text == "ok"
            assert names.asked == ["rebinding.test"]
            assert f"Host: rebinding.test:{server.port}\r\n" in server.heads[0]
            names.names["rebinding.test"] = ["127.0.0.2"]  # judged anew with the next connection
            with pytest.raises(AddressRefused):
                await client.get(url)


async def test_the_next_address_is_tried_when_one_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    Names({"two.test": ["127.0.0.2", "127.0.0.1"], "dead.test": ["127.0.0.2", "127.0.0.3"]}, monkeypatch)
    async with (
        serving({"/": says(b"ok")}) as server,
        guarded_client(EgressPolicy.parse("127.0.0.0/8"), timeout=5) as client,
    ):
        assert (await client.get(server.url("/", host="two.test"))).text == "ok"
        with pytest.raises(httpx2.ConnectError):
            await client.get(server.url("/", host="dead.test"))


async def test_a_resolver_that_never_answers_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(*args: object, **kwargs: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", silent)
    async with guarded_client(EgressPolicy(), timeout=0.05) as client:
        with pytest.raises(httpx2.ConnectTimeout):
            await client.get("http://slow.test/")


async def test_redirects_and_proxies_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = says(b"", status="302 Found", headers="Location: /x\r\n")
    async with serving({"/": answer}) as server, serving({"/": stalls()}) as proxy:
        monkeypatch.setenv("ALL_PROXY", proxy.url(""))
        async with guarded_client(EgressPolicy.parse("127.0.0.1"), timeout=5) as client:
            assert (await client.get(server.url("/"))).status_code == 302
        assert proxy.heads == []


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs the openssl command to make a certificate")
async def test_the_certificate_is_checked_for_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Names({"named.test": ["127.0.0.1"], "other.test": ["127.0.0.1"]}, monkeypatch)
    make_certificate(tmp_path, "named.test")
    asked: list[str | None] = []
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    theirs.sni_callback = lambda connection, name, context: asked.append(name)
    ours = ssl.create_default_context(cafile=tmp_path / "cert.pem")
    async with (
        serving({"/": says(b"ok")}, tls=theirs) as server,
        guarded_client(EgressPolicy.parse("127.0.0.1"), timeout=5, ssl_context=ours) as client,
    ):
        assert (await client.get(f"https://named.test:{server.port}/")).text == "ok"
        for host in ("other.test", "127.0.0.1"):
            with pytest.raises(httpx2.ConnectError, match="certificate"):
                await client.get(f"https://{host}:{server.port}/")
    assert asked == ["named.test", "other.test", None]


def make_certificate(directory: Path, name: str) -> None:
    """A self-signed certificate for one day: cert.pem and key.pem."""
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -keyout key.pem -out cert.pem"
    )
    subject = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"]
    subprocess.run([*command.split(), *subject], cwd=directory, check=True, capture_output=True, timeout=30)
