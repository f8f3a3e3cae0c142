"""Tokens of an identity provider: what must be in them, and how its keys are read and rotated."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from jobstream.caller import Scope
from jobstream.errors import IdentityUnavailable
from jobstream.redis import RedisSource
from jobstream_api.auth.tokens import FRESH_SECONDS, RETRY_SECONDS, STALE_SECONDS, KeySet
from tests.acceptance import wire
from tests.acceptance.guarded import Guarded, guarded

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
WEAK = rsa.generate_private_key(public_exponent=65537, key_size=1024)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
STRANGER = rsa.generate_private_key(public_exponent=65537, key_size=2048)

ISSUER = "https://id.example.org/"
AUDIENCE = "jobs"


def rsa_jwk(kid: str, key: rsa.RSAPrivateKey = RSA, **more: str) -> dict[str, Any]:
    return RSAAlgorithm.to_jwk(key.public_key(), as_dict=True) | {"kid": kid, **more}


class Provider:
    """An identity provider: publishes keys on a loopback port."""

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = [
            rsa_jwk("rsa", alg="RS256", use="sig"),
            ECAlgorithm.to_jwk(EC.public_key(), as_dict=True) | {"kid": "ec"},
            OKPAlgorithm.to_jwk(ED.public_key(), as_dict=True) | {"kid": "ed"},
            rsa_jwk("weak", WEAK),
            rsa_jwk("enc", use="enc"),
            {"kty": "oct", "k": "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0IHNlY3JldA", "kid": "shared", "alg": "HS256"},
        ]
        self.asked = 0
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.asked += 1
                body = json.dumps({"keys": provider.keys}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/jwks.json"


@pytest.fixture
def provider() -> Iterator[Provider]:
    provider = Provider()
    thread = threading.Thread(target=provider.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield provider
    provider.server.shutdown()
    thread.join()
    provider.server.server_close()


@contextlib.asynccontextmanager
async def serving(source: RedisSource, provider: Provider, **settings: str) -> AsyncIterator[Guarded]:
    async with guarded(
        source,
        auth=None,  # the JWKS alone turns it on
        jwt_jwks_url=provider.url,
        jwt_issuer=ISSUER,
        jwt_audience=AUDIENCE,
        jwt_algorithms="RS256,ES256,EdDSA",
        **settings,
    ) as service:
        yield service


@pytest.fixture
async def service(source: RedisSource, provider: Provider) -> AsyncIterator[Guarded]:
    async with serving(source, provider) as service:
        yield service


def token(key: Any = RSA, kid: str | None = "rsa", algorithm: str = "RS256", **claims: Any) -> str:
    said = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "exp": int(time.time()) + 60,
        "sub": "acme",
        "scope": "openid jobstream:submit jobstream:read",
    } | claims
    said = {name: value for name, value in said.items() if value is not None}
    return jwt.encode(said, key, algorithm=algorithm, headers={"kid": kid} if kid else {})


def signed_with_the_public_key() -> str:
    """What a verifier takes that lets the token choose how its signature is checked. PyJWT would not make it."""
    public = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    payload = token().split(".")[1]
    head = base64.urlsafe_b64encode(b'{"alg":"HS256","kid":"rsa","typ":"JWT"}').rstrip(b"=").decode()
    signature = hmac.digest(public, f"{head}.{payload}".encode(), "sha256")
    return f"{head}.{payload}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


async def test_a_token_names_tenant_and_scopes(service: Guarded) -> None:
    for text in (token(), token(EC, "ec", "ES256"), token(ED, "ed", "EdDSA")):
        async with service.http(text) as http:
            job = await wire.submit(http, "quiet")
            assert job["owner"] == "acme"
            assert (await http.get(f"/jobs/{job['id']}")).status_code == 200
            wire.problem(await http.post(f"/jobs/{job['id']}/cancel"), 403, "forbidden")
        async with service.http(token(sub="globex")) as http:
            wire.problem(await http.get(f"/jobs/{job['id']}"), 404, "job-not-found")
    async with service.http(await service.key("acme")) as http:
        assert (await http.get(f"/jobs/{job['id']}")).status_code == 200  # keys go on working


async def test_a_token_that_is_not_right_in_everything_is_none(service: Guarded) -> None:
    now = int(time.time())
    with pytest.warns(jwt.InsecureKeyLengthWarning):
        weak = token(WEAK, "weak")
    wrong = {
        "another's signature": token(STRANGER),
        "an unknown key": token(STRANGER, "stranger"),
        "no key named, of several": token(kid=None),
        "a weak key": weak,
        "a key for encryption": token(RSA, "enc"),
        "a shared secret, which the provider publishes": token("secret secret secret secret secret", "shared", "HS256"),
        "the public key as a secret": signed_with_the_public_key(),
        "no signature": token(None, "rsa", "none"),
        "another algorithm of the same key": token(RSA, "rsa", "RS512"),
        "issuer": token(iss="https://id.example.com/"),
        "no issuer": token(iss=None),
        "audience": token(aud="mail"),
        "no audience": token(aud=None),
        "no expiry": token(exp=None),
        "expired": token(exp=now - 31),
        "not yet": token(nbf=now + 3600),
        "no tenant": token(sub=None),
        "an empty tenant": token(sub=""),
        "a tenant that is none": token(sub="a b"),
        "cut": token()[:-5],
        "two dots": "a.b.c",
        "words": "words",
    }
    for what, text in wrong.items():
        async with service.http(text) as http:
            response = await http.get("/jobs")
            assert response.status_code == 401, what
            members = wire.problem(response, 401, "unauthorized")
            assert 'error="invalid_token"' in response.headers["www-authenticate"]
            assert members["detail"].startswith("The token ")
            if what == "expired":
                assert members["detail"] == "The token has expired"


async def test_clocks_may_differ_a_little(service: Guarded) -> None:
    now = int(time.time())
    async with service.http(token(exp=now - 5, nbf=now + 5, iat=now + 5)) as http:
        assert (await http.get("/jobs")).status_code == 200


async def test_the_claims_are_the_settings_choice(source: RedisSource, provider: Provider) -> None:
    names = {"jwt_tenant_claim": "https://example.org/org", "jwt_scope_claim": "roles", "jwt_scope_prefix": "jobs-"}
    async with serving(source, provider, **names) as service:
        claims: dict[str, Any] = {
            "https://example.org/org": "acme",
            "roles": ["jobs-read", "admin", 7],
            "scope": "jobs-admin",
        }
        async with service.http(token(**claims)) as http:
            assert (await http.get("/jobs")).status_code == 200
            wire.problem(await http.post("/quiet", json={}), 403, "forbidden")


async def test_scopes_that_are_not_ours_open_nothing(service: Guarded) -> None:
    for scope in ("admin read submit", "jobstream:", "jobstream:everything", None, 7, {"a": 1}):
        async with service.http(token(scope=scope)) as http:
            wire.problem(await http.get("/jobs"), 403, "forbidden")


async def test_keys_are_read_once_for_many_tokens(service: Guarded, provider: Provider) -> None:
    async with service.http(token()) as http:
        await asyncio.gather(*(http.get("/jobs") for _ in range(20)))
    for number in range(20):
        async with service.http(token(STRANGER, f"unknown-{number}")) as http:
            wire.problem(await http.get("/jobs"), 401)
    assert provider.asked == 1


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_a_rotated_key_is_found_as_soon_as_it_may_be_asked_for(provider: Provider) -> None:
    clock = Clock()
    keys = KeySet(KeySet.at(provider.url)._fetch, clock)
    assert await keys.key("rsa") is not None
    provider.keys = [rsa_jwk("new")]
    assert await keys.key("new") is None  # too soon
    clock.now += RETRY_SECONDS
    assert await keys.key("new") is not None
    assert await keys.key("rsa") is None
    assert await keys.key(None) is not None  # the only one
    assert provider.asked == 2


async def test_keys_that_are_old_are_read_again_and_kept_while_the_provider_is_away(provider: Provider) -> None:
    clock = Clock()
    keys = KeySet(KeySet.at(provider.url)._fetch, clock)
    await keys.key("rsa")
    provider.keys = []  # what a broken provider says is no reason to forget what it said before
    clock.now += FRESH_SECONDS
    assert await keys.key("rsa") is not None
    assert provider.asked == 2
    assert await keys.key("rsa") is not None
    assert provider.asked == 2
    clock.now += STALE_SECONDS
    with pytest.raises(IdentityUnavailable):
        await keys.key("rsa")


async def test_a_provider_that_is_away_is_503_for_tokens_and_nothing_for_keys(source: RedisSource) -> None:
    away = Provider()
    away.server.server_close()
    async with serving(source, away) as service:
        async with service.http(token()) as http:
            response = await http.get("/jobs")
            wire.problem(response, 503, "identity-unavailable")
            assert response.headers["retry-after"]
        async with service.http(await service.key("acme", Scope.READ)) as http:
            assert (await http.get("/jobs")).status_code == 200
