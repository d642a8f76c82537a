"""Verifies tokens with a signed bundle of key sets, without asking the service. docs/how-to/jwks-on-a-cdn.md numbers
the steps. What goes in and out: tests/clients/README.md.
"""

import argparse
import json
import os
import sys
import time

import jwt

BUNDLE_TYP = "kms-jwks-bundle+jwt"
SUCCESSION_TYP = "kms-jwks-bundle-succession+jwt"
# A clock that is behind sees a fresh bundle as one of the future. Nothing is added to its end.
EARLY_SECONDS_MAX = 60


class Refused(Exception):
    pass


def opened(jws: str, key: dict, typ: str) -> dict:
    """The claims of a JWS by exactly this key, with its own algorithm, of exactly this type."""
    header = jwt.get_unverified_header(jws)
    if header.get("kid") != key["kid"]:
        raise Refused(f"signed by {header.get('kid')}, which is not what is pinned")
    if header.get("typ") != typ:
        raise Refused(f"its type is {header.get('typ')}")
    return json.loads(jwt.PyJWS().decode(jws, jwt.PyJWK(key), algorithms=[key["alg"]]))


def followed(pin: dict, chain: list, issuer: str) -> dict:
    """The key to which the statements lead from the pinned one. Those from before it are passed over."""
    for statement in chain:
        if jwt.get_unverified_header(statement).get("kid") == pin["kid"]:
            claims = opened(statement, pin, SUCCESSION_TYP)
            if claims["iss"] != issuer:
                raise Refused(f"a statement is of the issuer {claims['iss']}")
            pin = claims["jwk"]
    return pin


def accepted(
    document: dict, state: dict, issuer: str, subject: str, lifetime_max: int, now: float
) -> tuple[list, dict]:
    """The keys of the bundle, and what is to be remembered."""
    pin = followed(state["pin"], document["chain"], issuer)
    claims = opened(document["bundle"], pin, BUNDLE_TYP)
    if (claims["iss"], claims["sub"]) != (issuer, subject):
        raise Refused(f"it is the set {claims['sub']} of {claims['iss']}")
    if claims["nbf"] > now + EARLY_SECONDS_MAX:
        raise Refused("it does not hold yet")
    if claims["exp"] <= now:
        raise Refused("it has expired")
    if claims["exp"] - claims["nbf"] > lifetime_max:
        raise Refused("it lives for longer than a revocation may take")
    # Every older bundle has ended when the newest that was seen has lived for as long as any may: its own end may come first.
    newest_seen = state["seq"] if now < state["until"] else 0
    if claims["seq"] < newest_seen:
        raise Refused(f"it is older (number {claims['seq']}) than one that was seen (number {newest_seen})")
    until = max(claims["nbf"] + lifetime_max, state["until"] if newest_seen else 0)
    return claims["keys"], {"pin": pin, "seq": claims["seq"], "until": until}


def verdict_on(token: str, alg: str, keys: list, issuer: str, audience: str) -> dict:
    try:
        kid = jwt.get_unverified_header(token).get("kid")
        key = next((key for key in keys if key["kid"] == kid and key["alg"] == alg), None)
        if key is None:
            return {"verdict": "refused", "detail": f"no key {kid} for {alg} in the set"}
        options = {"require": ["exp", "iss", "aud"]}
        claims = jwt.decode(
            token, jwt.PyJWK(key), algorithms=[alg], issuer=issuer, audience=audience, options=options
        )
    except jwt.InvalidSignatureError as error:
        return {"verdict": "bad-signature", "detail": str(error)}
    except jwt.PyJWTError as error:
        return {"verdict": "refused", "detail": f"{type(error).__name__}: {error}"}
    return {"verdict": "verified", "claims": claims}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle_file")
    parser.add_argument("state_file", help='{"pin": JWK, "seq": 0, "until": 0} at first')
    parser.add_argument("issuer")
    parser.add_argument("audience")
    parser.add_argument("--subject", default="keys/*", help="which set it must be")
    parser.add_argument("--lifetime-max", type=int, default=3600, metavar="SECONDS")
    parser.add_argument("--now", type=float, default=time.time(), help="for tests: the time by which it is judged")
    arguments = parser.parse_args()
    with open(arguments.bundle_file, encoding="utf-8") as file:
        document = json.load(file)
    with open(arguments.state_file, encoding="utf-8") as file:
        state = json.load(file)
    try:
        keys, state = accepted(
            document, state, arguments.issuer, arguments.subject, arguments.lifetime_max, arguments.now
        )
    except (Refused, jwt.PyJWTError, KeyError, ValueError) as error:
        print(json.dumps({"verdict": "refused", "detail": f"{type(error).__name__}: {error}"}))
        return 1
    beside = arguments.state_file + ".new"
    with open(beside, "w", encoding="utf-8") as file:
        json.dump(state, file)
    os.replace(beside, arguments.state_file)
    print(json.dumps({"verdict": "accepted", "kid": state["pin"]["kid"], "seq": state["seq"]}))
    all_verified = True
    for line in sys.stdin:
        alg, token = line.split()
        verdict = verdict_on(token, alg, keys, arguments.issuer, arguments.audience)
        all_verified &= verdict["verdict"] == "verified"
        print(json.dumps(verdict))
    return 0 if all_verified else 1


if __name__ == "__main__":
    sys.exit(main())
