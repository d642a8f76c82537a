"""Opens envelopes and wrapped keys, and seals them again from the same inputs. A second implementation of
docs/reference/envelope-format.md, which shares no code with kms/envelope. What goes in and out: tests/clients/README.md.
"""

import argparse
import hashlib
import hmac
import json
import pathlib
import struct
import sys

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import load_der_private_key

PURPOSES = {"native": 1, "vault": 2, "kubernetes": 3}
WRAPS = {"A256GCMKW": 1, "RSA-OAEP-256": 2}
CHUNK_LEN = 65_536
TAG_LEN = 16
WRAP_HEADER_LEN = 76


class Malformed(Exception):
    pass


class NotOpened(Exception):
    pass


class Reader:
    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        if len(self.data) - self.at < count:
            raise Malformed("cut off")
        self.at += count
        return self.data[self.at - count : self.at]

    def rest(self) -> bytes:
        return self.take(len(self.data) - self.at)


def require(condition: bool, what: str) -> None:
    if not condition:
        raise Malformed(what)


def canonical(context: dict) -> bytes:
    pairs = sorted((name.encode(), value.encode()) for name, value in context.items())
    encoded = struct.pack(">H", len(pairs))
    for text in (text for pair in pairs for text in pair):
        encoded += struct.pack(">H", len(text)) + text
    return encoded


def context_digest(context: dict) -> bytes:
    return hashlib.sha256(b"kms key context v1\0" + canonical(context)).digest()


def wrap_header(algorithm: int, purpose: int, uid: bytes, version: int, data_key_id: bytes, digest: bytes) -> bytes:
    return b"KMSW" + bytes([1, algorithm, purpose, 0]) + uid + struct.pack(">I", version) + data_key_id + digest


def wrap_aad(wrapped_key: bytes) -> bytes:
    return b"kms wrap v1\0" + wrapped_key[:WRAP_HEADER_LEN]


def parse_wrapped_key(data: bytes) -> dict:
    reader = Reader(data)
    require(reader.take(4) == b"KMSW", "no wrapped key")
    version, algorithm, purpose, reserved = reader.take(4)
    require(version == 1, "newer")
    require(algorithm in WRAPS.values(), "unknown algorithm")
    require(purpose in PURPOSES.values(), "unknown purpose")
    require(reserved == 0, "reserved byte")
    reader.take(16)
    require(int.from_bytes(reader.take(4), "big") >= 1, "version 0")
    data_key_id, digest = reader.take(16), reader.take(32)
    wrapped = reader.take(int.from_bytes(reader.take(2), "big"))
    require(not reader.rest(), "something follows")
    fits = range(16 + 28, 1024 + 28 + 1) if algorithm == 1 else range(1, 4096 + 1)
    require(len(wrapped) in fits, "length")
    return {
        "algorithm": algorithm,
        "purpose": purpose,
        "data_key_id": data_key_id,
        "digest": digest,
        "wrapped": wrapped,
    }


def unwrap(wrapped_key: bytes, recipient: dict, key_context: dict) -> bytes:
    parsed = parse_wrapped_key(wrapped_key)
    if parsed["digest"] != context_digest(key_context):
        raise NotOpened
    wrapped, aad = parsed["wrapped"], wrap_aad(wrapped_key)
    try:
        if parsed["algorithm"] == WRAPS["A256GCMKW"]:
            return AESGCM(bytes.fromhex(recipient["kek"])).decrypt(wrapped[:12], wrapped[12:], aad)
        private_key = load_der_private_key(bytes.fromhex(recipient["private_key"]), None)
        return private_key.decrypt(wrapped, padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), aad))
    except (InvalidTag, ValueError, KeyError) as error:
        raise NotOpened from error


def parse_header(data: bytes) -> dict:
    reader = Reader(data)
    require(reader.take(4) == b"KMSE", "no envelope")
    version, suite, purpose, count = reader.take(4)
    require(version == 1 and suite == 1, "newer")
    require(purpose in PURPOSES.values(), "unknown purpose")
    require(1 <= count <= 8, "recipients")
    data_key_id, salt, commitment = reader.take(16), reader.take(32), reader.take(32)
    recipients = [reader.take(int.from_bytes(reader.take(2), "big")) for _ in range(count)]
    parsed = [parse_wrapped_key(recipient) for recipient in recipients]
    for recipient in parsed:
        require(recipient["data_key_id"] == data_key_id, "another data key")
        require(recipient["purpose"] == purpose, "another purpose")
        require(recipient["digest"] == parsed[0]["digest"], "several contexts")
    return {
        "purpose": purpose,
        "data_key_id": data_key_id,
        "salt": salt,
        "commitment": commitment,
        "recipients": recipients,
        "payload": reader.rest(),
    }


def derive(
    data_key: bytes, purpose: int, data_key_id: bytes, salt: bytes, contexts: tuple[dict, dict]
) -> tuple[AESGCM, bytes]:
    info = b"kms payload v1\0" + bytes([1, 1, purpose]) + data_key_id + salt
    for encoded in map(canonical, contexts):
        info += struct.pack(">I", len(encoded)) + encoded
    output = HKDF(algorithm=hashes.SHA256(), length=64, salt=salt, info=info).derive(data_key)
    return AESGCM(output[:32]), output[32:]


def nonce(counter: int, last: bool) -> bytes:
    return bytes(7) + struct.pack(">I", counter) + bytes([last])


def open_envelope(envelope: bytes, data_key: bytes, purpose: int, contexts: tuple[dict, dict]) -> bytes:
    header = parse_header(envelope)
    if header["purpose"] != purpose:
        raise NotOpened
    key, commitment = derive(data_key, purpose, header["data_key_id"], header["salt"], contexts)
    if not hmac.compare_digest(commitment, header["commitment"]):
        raise NotOpened
    payload, plaintext = header["payload"], b""
    chunks = [payload[at : at + CHUNK_LEN + TAG_LEN] for at in range(0, len(payload), CHUNK_LEN + TAG_LEN)]
    if not chunks or (len(chunks) > 1 and len(chunks[-1]) == TAG_LEN):
        raise NotOpened
    for counter, chunk in enumerate(chunks):
        try:
            plaintext += key.decrypt(nonce(counter, counter == len(chunks) - 1), chunk, None)
        except (InvalidTag, ValueError) as error:
            raise NotOpened from error
    return plaintext


def seal(vector: dict, plaintext: bytes) -> bytes:
    purpose = PURPOSES[vector["purpose"]]
    contexts = (vector["key_context"], vector["local_context"])
    data_key, data_key_id, salt = (bytes.fromhex(vector[name]) for name in ("data_key", "data_key_id", "salt"))
    recipients = []
    for recipient in vector["recipients"]:
        header = wrap_header(
            WRAPS[recipient["algorithm"]],
            purpose,
            bytes.fromhex(recipient["key_uid"]),
            recipient["key_version"],
            data_key_id,
            context_digest(contexts[0]),
        )
        if "kek" in recipient:
            iv = bytes.fromhex(recipient["iv"])
            wrapped = iv + AESGCM(bytes.fromhex(recipient["kek"])).encrypt(iv, data_key, wrap_aad(header))
        else:
            # OAEP is randomised: what was drawn once is an input.
            wrapped = bytes.fromhex(recipient["wrapped"])
        recipients.append(header + struct.pack(">H", len(wrapped)) + wrapped)
    key, commitment = derive(data_key, purpose, data_key_id, salt, contexts)
    envelope = b"KMSE" + bytes([1, 1, purpose, len(recipients)]) + data_key_id + salt + commitment
    for recipient in recipients:
        envelope += struct.pack(">H", len(recipient)) + recipient
    chunks = [plaintext[at : at + CHUNK_LEN] for at in range(0, len(plaintext), CHUNK_LEN)] or [b""]
    for counter, chunk in enumerate(chunks):
        envelope += key.encrypt(nonce(counter, counter == len(chunks) - 1), chunk, None)
    return envelope


def plaintext_of(vector: dict) -> bytes:
    if "plaintext" in vector:
        return bytes.fromhex(vector["plaintext"])
    return bytes((at ^ at >> 8 ^ at >> 16) & 0xFF for at in range(vector["plaintext_len"]))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def opened(vector: dict, directory: pathlib.Path) -> dict:
    """The verdict on one envelope, or on one wrapped key."""
    if "wrapped_key" in vector:
        key = unwrap(bytes.fromhex(vector["wrapped_key"]), vector, vector["key_context"])
        return {"verdict": "opened", "plaintext_sha256": sha256(key)}
    contexts = (vector["key_context"], vector["local_context"])
    data_key, answer = bytes.fromhex(vector["data_key"]), {}
    if "salt" in vector:
        envelope = seal(vector, plaintext_of(vector))
        answer["sealed_sha256"] = sha256(envelope)
    if "envelope" in vector:
        envelope = bytes.fromhex(vector["envelope"])
    elif "envelope_file" in vector:
        envelope = (directory / vector["envelope_file"]).read_bytes()
    # The way of every envelope: whoever holds the key of one recipient gets the data key. Each is tried.
    recipients = vector.get("recipients", [])
    for recipient, wrapped_key in zip(recipients, parse_header(envelope)["recipients"] if recipients else []):
        if unwrap(wrapped_key, recipient, contexts[0]) != data_key:
            raise NotOpened
    plaintext = open_envelope(envelope, data_key, PURPOSES[vector["purpose"]], contexts)
    return answer | {"verdict": "opened", "plaintext_sha256": sha256(plaintext)}


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("file", type=pathlib.Path, nargs="+", metavar="VECTORS_FILE")
    for file in arguments.parse_args().file:
        for vector in json.loads(file.read_text())["vectors"]:
            try:
                answer = opened(vector, file.parent)
            except NotOpened:
                answer = {"verdict": "not-opened"}
            except Malformed as error:
                answer = {"verdict": "malformed", "detail": str(error)}
            print(json.dumps({"name": vector["name"]} | answer), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
