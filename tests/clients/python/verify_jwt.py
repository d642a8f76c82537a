"""Verifies tokens with PyJWT through a JWKS URL. What goes in and out: tests/clients/README.md."""

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


def main() -> int:
    if len(sys.argv) != 4:
        print("usage: verify_jwt.py JWKS_URL ISSUER AUDIENCE < LINES", file=sys.stderr)
        return 2
    url, issuer, audience = sys.argv[1:]
    keys = jwt.PyJWKClient(url)
    all_verified = True
    for line in sys.stdin:
        alg, token = line.split()
        verdict = verdict_on(token, alg, keys, issuer, audience)
        all_verified &= verdict["verdict"] == "verified"
        print(json.dumps(verdict))
    return 0 if all_verified else 1


if __name__ == "__main__":
    sys.exit(main())
