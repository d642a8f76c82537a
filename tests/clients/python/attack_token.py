"""Tries to get private and secret keys out of a PKCS#11 token, as somebody could who has the PIN.

Arguments: MODULE PIN_FILE; the module's own variable leads to the token. Every private and secret key of the token is
attacked as Clulow ("On the Security of PKCS #11", 2003) and Tookan ("Attacking and Fixing PKCS#11 Security Tokens",
2010) do:

- wrap it by each mechanism that wraps, under a key that also decrypts, and decrypt the blob, or import the blob once
  more with other attributes;
- read it;
- loosen its attributes, its class too, in place or in a copy;
- have a secret key wrap itself and decrypt the blob, wrap a key of the attacker's, or unwrap;
- have it unwrap or decrypt what was encrypted to it, derive from it, digest it, sign with recovery, save the state of
  an operation with it.

Before that the same is done to baits: keys that the attacker made carelessly. What fails on them too proves nothing.

Prints one JSON object a line: {"id": CKA_ID, "key": CKA_LABEL, "bait": bool, "attack": name, "answer": what the token
refused with, "recovered": whether the key was put together outside the token: a private key that fits its public one,
a secret key that encrypts as the token does}. An attack that succeeded has "answer": null. Exit code: 0 when every
attack on a key that is no bait failed, else 1.

No extraction, and not tried: signing with a signing key (with raw RSA that decrypts what was encrypted to it), and
putting another key with the same CKA_ID beside it.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import parameters
import recovery
from cryptoki import Refused, Token
from pkcs11t import CKA, CKF, CKK, CKM, CKO

MATERIAL = [
    CKA.VALUE,
    CKA.PRIVATE_EXPONENT,
    CKA.PRIME_1,
    CKA.PRIME_2,
    CKA.EXPONENT_1,
    CKA.EXPONENT_2,
    CKA.COEFFICIENT,
]

LOOSER = [
    (CKA.EXTRACTABLE, True),
    (CKA.NEVER_EXTRACTABLE, False),
    (CKA.SENSITIVE, False),
    (CKA.PRIVATE, False),
    (CKA.DECRYPT, True),
    (CKA.UNWRAP, True),
    (CKA.WRAP, True),
    (CKA.DERIVE, True),
    (CKA.SIGN_RECOVER, True),
    (CKA.MODIFIABLE, True),
    (CKA.COPYABLE, True),
    (CKA.WRAP_WITH_TRUSTED, False),
    (CKA.ALLOWED_MECHANISMS, b""),
    (CKA.CLASS, CKO.DATA),
    (CKA.CLASS, CKO.PUBLIC_KEY),
    (CKA.CLASS, CKO.SECRET_KEY),
    (CKA.KEY_TYPE, CKK.GENERIC_SECRET),
]

READABLE = {CKA.TOKEN: False, CKA.SENSITIVE: False, CKA.EXTRACTABLE: True}


@dataclass
class Key:
    """A key under attack."""

    handle: int
    cls: CKO
    type: int
    id: str
    label: str
    bait: bool
    # None of a secret key.
    public: object
    fits: Callable[[bytes], bool]


class Attacker:
    """Somebody with the PIN, and keys of his own that wrap and decrypt."""

    def __init__(self, token):
        self.token = token
        self.flags = token.mechanisms()
        uses = {CKA.WRAP: True, CKA.UNWRAP: True, CKA.ENCRYPT: True, CKA.DECRYPT: True}
        self.wrappers = {"AES": 2 * (token.generate(CKM.AES_KEY_GEN, {**READABLE, **uses, CKA.VALUE_LEN: 32}),)}
        if CKM.DES3_KEY_GEN in self.flags:
            self.wrappers["DES3"] = 2 * (token.generate(CKM.DES3_KEY_GEN, {**READABLE, **uses}),)
        # 4096 bits, so that the private key of a curve fits whole.
        public = {CKA.MODULUS_BITS: 4096, CKA.PUBLIC_EXPONENT: b"\1\0\1", CKA.WRAP: True, CKA.ENCRYPT: True}
        private = {CKA.UNWRAP: True, CKA.DECRYPT: True}
        self.wrappers["RSA"] = token.generate_pair(CKM.RSA_PKCS_KEY_PAIR_GEN, public, private)

    def attacks(self, key):
        """Name and function of each attack; the function raises when the token withstands, and else returns what it
        came by, pieces of key material perhaps."""
        token = self.token
        for kind in MATERIAL:
            yield f"read {kind.name}", lambda kind=kind: [token.read(key.handle, kind)]
        for family, pair in self.wrappers.items():
            for kind in self.mechanisms(CKF.WRAP, family):
                yield f"wrap {kind.name}", lambda use=parameters.of(kind), pair=pair: self.wrap(use, pair, key)
        if key.type == CKK.RSA:
            for kind in self.mechanisms(CKF.DECRYPT, "RSA"):
                yield f"decrypt {kind.name}", lambda use=parameters.of(kind): self.decrypt(use, key)
            for kind in self.mechanisms(CKF.UNWRAP, "RSA"):
                yield f"unwrap {kind.name}", lambda use=parameters.of(kind): self.unwrap(use, key)
            recover = (CKM.RSA_PKCS, b"")
            yield "sign with recovery", lambda: [token.sign_recover(recover, key.handle, b"x")]
        if key.cls == CKO.SECRET_KEY:
            for kind in self.mechanisms(CKF.WRAP, "AES"):
                use = parameters.of(kind)
                yield f"wrap itself {kind.name}", lambda use=use: self.wrap(use, 2 * (key.handle,), key)
                yield f"wrap another {kind.name}", lambda use=use: self.wrap_another(use, key)
            for kind in self.mechanisms(CKF.UNWRAP, "AES"):
                yield f"unwrap {kind.name}", lambda use=parameters.of(kind): self.unwrap_with(use, key)
        if key.public is not None:
            point = recovery.point_of_attacker(key.public)
            for kind in self.mechanisms(CKF.DERIVE):
                name = getattr(kind, "name", f"{kind:#x}")
                yield f"derive {name}", lambda use=parameters.of(kind, point): self.derive(use, key)
            yield "save state", lambda: self.save_state(key)
        yield "digest", lambda: [token.digest_key((CKM.SHA256, b""), key.handle)]
        for kind, value in LOOSER:
            yield f"copy {loosened(kind, value)}", lambda looser={kind: value}: self.copy(looser, key)
        # Last: what was loosened would help the others.
        for kind, value in LOOSER:
            yield f"set {loosened(kind, value)}", lambda looser={kind: value}: self.set(looser, key)

    def mechanisms(self, use, family=None):
        """Those of the token for a use, and for keys of one family."""
        for kind, can in self.flags.items():
            known = kind in CKM._value2member_map_
            if can & use and (family is None or known and CKM(kind).name.startswith(family + "_")):
                yield CKM(kind) if known else kind

    def wrap(self, use, pair, key):
        wrapping, decrypting = pair
        blob = self.token.wrap(use, wrapping, key.handle)
        pieces = list(recovery.opened(self.token, use, decrypting, blob))
        twin = {CKA.CLASS: key.cls, CKA.KEY_TYPE: key.type, **READABLE}
        try:
            return pieces + self.pieces(self.token.unwrap(use, decrypting, blob, twin))
        except Refused:
            return pieces

    def decrypt(self, use, key):
        self.token.begin("DecryptInit", use, key.handle)
        # It is willing. This ends the operation.
        return [self.token.finish("Decrypt", recovery.encrypted_to(key.public, use[0], b"\1" * 32))]

    def unwrap(self, use, key):
        blob = recovery.encrypted_to(key.public, use[0], b"\1" * 32)
        wanted = {CKA.CLASS: CKO.SECRET_KEY, CKA.KEY_TYPE: CKK.AES, **READABLE}
        return self.pieces(self.token.unwrap(use, key.handle, blob, wanted))

    def wrap_another(self, use, key):
        mine, _ = self.wrappers["AES"]
        return [self.token.wrap(use, key.handle, mine)]

    def unwrap_with(self, use, key):
        wanted = {CKA.CLASS: CKO.SECRET_KEY, CKA.KEY_TYPE: CKK.AES, **READABLE}
        return self.pieces(self.token.unwrap(use, key.handle, bytes(32), wanted))

    def derive(self, use, key):
        wanted = {CKA.CLASS: CKO.SECRET_KEY, CKA.KEY_TYPE: CKK.GENERIC_SECRET, **READABLE, CKA.VALUE_LEN: 16}
        return self.pieces(self.token.derive(use, key.handle, wanted))

    def save_state(self, key):
        kind = {CKK.RSA: CKM.RSA_PKCS, CKK.EC: CKM.ECDSA}.get(key.type, CKM.EDDSA)
        self.token.begin("SignInit", (kind, b""), key.handle)
        try:
            return [self.token.operation_state()]
        finally:
            self.token.finish("Sign", bytes(32))

    def copy(self, looser, key):
        copied = self.token.copy(key.handle, {CKA.TOKEN: False, **looser})
        try:
            return self.pieces(copied)
        finally:
            self.token.destroy(copied)

    def set(self, looser, key):
        self.token.set(key.handle, looser)
        return self.pieces(key.handle)

    def pieces(self, handle):
        """What can be read of an object."""
        pieces = []
        for kind in MATERIAL:
            try:
                pieces.append(self.token.read(handle, kind))
            except Refused:
                pass
        return pieces

    def baits(self):
        """Keys made carelessly, and all may be changed and copied: `open` ones can be read, `wrappable` ones be
        carried out under another key, `changeable` ones neither."""
        token = self.token
        loose = {CKA.SIGN: True, CKA.DECRYPT: True, CKA.UNWRAP: True}
        kinds = {
            "EC": (CKM.EC_KEY_PAIR_GEN, CKA.DERIVE, {CKA.EC_PARAMS: next(iter(recovery.CURVES))}),
            "RSA": (CKM.RSA_PKCS_KEY_PAIR_GEN, CKA.SIGN_RECOVER, {CKA.MODULUS_BITS: 2048}),
        }
        for label, sensitive, extractable in [
            ("open", False, True),
            ("wrappable", True, True),
            ("changeable", True, False),
        ]:
            private = {**loose, CKA.SENSITIVE: sensitive, CKA.EXTRACTABLE: extractable}
            for name, (generation, use, public) in kinds.items():
                public_handle, handle = token.generate_pair(generation, public, {**private, use: True})
                yield self.pair(handle, public_handle, f"{label} {name}", bait=True)
            secret = {**private, CKA.WRAP: True, CKA.ENCRYPT: True, CKA.VALUE_LEN: 32}
            handle = token.generate(CKM.AES_KEY_GEN, secret)
            yield Key(handle, CKO.SECRET_KEY, CKK.AES, "", f"{label} AES", True, None, self.aes_fits(handle))

    def aes_fits(self, handle):
        # Written down before the attacks: some change what the key is.
        block = self.token.encrypt((CKM.AES_ECB, b""), handle, bytes(16))
        return partial(recovery.encrypts_zeroes_to, block)

    def victims(self):
        """Every private and secret key that lies in the token."""
        for handle in self.token.find({CKA.CLASS: CKO.SECRET_KEY, CKA.TOKEN: True}):
            # All that ours may do is to encrypt with AES-GCM.
            sealed = self.token.encrypt(parameters.of(CKM.AES_GCM), handle, bytes(16))
            fits = partial(recovery.seals_zeroes_to, sealed)
            cka_id, label = self.token.read(handle, CKA.ID).hex(), self.token.read(handle, CKA.LABEL).decode()
            yield Key(handle, CKO.SECRET_KEY, CKK.AES, cka_id, label, False, None, fits)
        for private in self.token.find({CKA.CLASS: CKO.PRIVATE_KEY, CKA.TOKEN: True}):
            cka_id = self.token.read(private, CKA.ID)
            (public,) = self.token.find({CKA.CLASS: CKO.PUBLIC_KEY, CKA.TOKEN: True, CKA.ID: cka_id})
            yield self.pair(private, public, self.token.read(private, CKA.LABEL).decode(), bait=False)

    def pair(self, private, public, label, bait):
        cka_id = "" if bait else self.token.read(private, CKA.ID).hex()
        kind = int.from_bytes(self.token.read(private, CKA.KEY_TYPE), sys.byteorder)
        known = recovery.public_key(self.token, public)
        fits = partial(recovery.fits, known)
        return Key(private, CKO.PRIVATE_KEY, kind, cka_id, label, bait, known, fits)


def loosened(kind, value):
    """The name of a change."""
    return f"{kind.name} {value.name}" if kind == CKA.CLASS else kind.name


def main() -> int:
    module, pin_file = sys.argv[1:]
    with open(pin_file, encoding="ascii") as file:
        pin = file.read().rstrip("\n")
    attacker = Attacker(Token(module, pin))
    safe = True
    for key in [*attacker.baits(), *attacker.victims()]:
        for attack, attempt in attacker.attacks(key):
            answer, recovered = None, False
            try:
                recovered = any(key.fits(piece) for piece in attempt())
            except Refused as refused:
                answer = str(refused)
            safe &= key.bait or answer is not None
            told = {"id": key.id, "key": key.label, "bait": key.bait, "attack": attack}
            print(json.dumps({**told, "answer": answer, "recovered": recovered}))
    return 0 if safe else 1


if __name__ == "__main__":
    sys.exit(main())
