"""Puts a key together from what an attack came by, and says whether it is the one that was attacked."""

import math

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.serialization import load_der_private_key

import parameters
from cryptoki import Refused
from pkcs11t import CKA, CKK, CKM

CURVES = {
    bytes.fromhex("06082a8648ce3d030107"): ec.SECP256R1(),
    bytes.fromhex("06052b81040022"): ec.SECP384R1(),
    bytes.fromhex("06052b81040023"): ec.SECP521R1(),
}

# RFC 3394 and RFC 5649.
KEY_WRAPS = {CKM.AES_KEY_WRAP, CKM.AES_KEY_WRAP_PAD, CKM.AES_KEY_WRAP_KWP, CKM.AES_KEY_WRAP_PKCS7}


def public_key(token, handle):
    """The public key that lies in an object."""
    kind = int.from_bytes(token.read(handle, CKA.KEY_TYPE), "little")
    if kind == CKK.RSA:
        numbers = (token.read(handle, attribute) for attribute in (CKA.PUBLIC_EXPONENT, CKA.MODULUS))
        return rsa.RSAPublicNumbers(*(int.from_bytes(number, "big") for number in numbers)).public_key()
    point = token.read(handle, CKA.EC_POINT)
    if kind == CKK.EC_EDWARDS:
        return ed25519.Ed25519PublicKey.from_public_bytes(point[-32:])
    curve = CURVES[token.read(handle, CKA.EC_PARAMS)]
    size = 1 + 2 * ((curve.key_size + 7) // 8)
    return ec.EllipticCurvePublicKey.from_encoded_point(curve, point[-size:])


def point_of_attacker(public):
    """The attacker's half of an ECDH agreement on the curve of `public`."""
    if not isinstance(public, ec.EllipticCurvePublicKey):
        return bytes(32)
    numbers = ec.generate_private_key(public.curve).public_key().public_numbers()
    size = (public.curve.key_size + 7) // 8
    return b"\4" + numbers.x.to_bytes(size, "big") + numbers.y.to_bytes(size, "big")


def encrypted_to(public, kind, secret):
    """`secret` as `kind` unwraps it under the private half of `public`."""
    if kind == CKM.RSA_PKCS:
        return public.encrypt(secret, padding.PKCS1v15())
    if kind == CKM.RSA_PKCS_OAEP:
        return public.encrypt(secret, padding.OAEP(padding.MGF1(SHA1()), SHA1(), None))
    numbers = public.public_numbers()
    number = pow(int.from_bytes(secret, "big"), numbers.e, numbers.n)
    return number.to_bytes(public.key_size // 8, "big")


def opened(token, use, decrypting, blob):
    """What a blob holds, by each way in which the key that wrapped it also decrypts."""
    try:
        yield token.decrypt(use, decrypting, blob)
    except Refused:
        pass
    if use[0] in KEY_WRAPS:
        # Tokens that have no C_Decrypt for it decrypt the blocks that it is made of.
        yield key_unwrapped(lambda block: token.decrypt(parameters.of(CKM.AES_ECB), decrypting, block), blob)


def key_unwrapped(decrypt_block, blob):
    """RFC 3394 section 2.2.2 without the check at its end, so that it opens RFC 5649 too."""
    head, *rest = (blob[at : at + 8] for at in range(0, len(blob), 8))
    if len(rest) == 1:
        return decrypt_block(blob)[8:]
    for turn in reversed(range(6 * len(rest))):
        at = turn % len(rest)
        number = int.from_bytes(head, "big") ^ (turn + 1)
        block = decrypt_block(number.to_bytes(8, "big") + rest[at])
        head, rest[at] = block[:8], block[8:]
    return b"".join(rest)


def fits(public, piece):
    """Whether `piece` gives the private half of `public`: PKCS #8, or a number of it."""
    number = int.from_bytes(piece, "big")
    if isinstance(public, rsa.RSAPublicKey):
        modulus, exponent = public.public_numbers().n, public.public_numbers().e
        if 1 < math.gcd(number, modulus) < modulus:
            return True  # A prime.
        # Any exponent that undoes the public one, modulo either prime or both.
        if 1 < number < modulus and math.gcd(pow(2, exponent * number, modulus) - 2, modulus) > 1:
            return True
    elif isinstance(public, ed25519.Ed25519PublicKey):
        if len(piece) == 32 and _same(public, ed25519.Ed25519PrivateKey.from_private_bytes(piece)):
            return True
    elif 0 < number < 1 << public.curve.key_size:
        try:
            if _same(public, ec.derive_private_key(number, public.curve)):
                return True
        except ValueError:
            pass  # Not below the order of the curve.
    try:
        return _same(public, load_der_private_key(_without_padding(piece), None))
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False


def encrypts_zeroes_to(block, piece):
    """Whether `piece` is the AES key under which a block of zeroes becomes `block`."""
    if len(piece) not in (16, 24, 32):
        return False
    return Cipher(algorithms.AES(piece), modes.ECB()).encryptor().update(bytes(16)) == block


def seals_zeroes_to(sealed, piece):
    """Whether `piece` is the AES key under which AES-GCM with an IV of zeroes makes `sealed` of a block of zeroes."""
    return len(piece) in (16, 24, 32) and AESGCM(piece).encrypt(bytes(12), bytes(16), None) == sealed


def _same(public, private):
    return private.public_key() == public


def _without_padding(der):
    """One DER element, without what a block cipher put behind it."""
    if len(der) < 2 or der[1] < 0x80:
        return der[: 2 + der[1]] if len(der) > 1 else der
    count = der[1] & 0x7F
    return der[: 2 + count + int.from_bytes(der[2 : 2 + count], "big")]
