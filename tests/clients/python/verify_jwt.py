"""Verifies tokens with PyJWT through a JWKS URL. What goes in and out: tests/clients/README.md."""

import argparse
import json
import sys

import jwt
from jwt.algorithms import get_default_algorithms


def verdict_on(token: str, alg: str, keys: jwt.PyJWKClient, issuer: str, audience: str) -> dict:
    if alg not in get_default_algorithms():
        return {"verdict": "unsupported-algorithm", "detail": f"PyJWT {jwt.__version__} has no {alg}"}
    try:
        key = keys.get_signing_key_from_jwt(token)
        claims = jwt.decode(
            token,
            key,
            algorithms=[alg],
            issuer=issuer,
            audience=audience,
            options={"require": ["exp", "iss", "aud"]},
        )
    except jwt.InvalidSignatureError as error:
        return {"verdict": "bad-signature", "detail": str(error)}
    except jwt.PyJWTError as error:
        return {"verdict": "refused", "detail": f"{type(error).__name__}: {error}"}
    return {"verdict": "verified", "claims": claims}


class CountingClient(jwt.PyJWKClient):
    """The library's, which also says how often it has fetched."""

    fetches = 0

    def fetch_data(self):
        self.fetches += 1
        return super().fetch_data()


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--cache", type=float, metavar="SECONDS")
    for name in ("url", "issuer", "audience"):
        arguments.add_argument(name)
    given = arguments.parse_args()
    # PyJWKClient does not read Cache-Control: who uses it says how long a set is kept.
    times = {} if given.cache is None else {"lifespan": given.cache, "cooldown_duration": given.cache}
    keys = CountingClient(given.url, **times)
    all_verified = True
    for line in sys.stdin:
        alg, token = line.split()
        verdict = verdict_on(token, alg, keys, given.issuer, given.audience)
        all_verified &= verdict["verdict"] == "verified"
        print(json.dumps({**verdict, "fetches": keys.fetches}), flush=True)
    return 0 if all_verified else 1


if __name__ == "__main__":
    sys.exit(main())
