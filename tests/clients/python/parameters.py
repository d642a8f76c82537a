"""Parameters of mechanisms (PKCS#11 v3.1 section 6): zeroes wherever the attacker has a choice."""

import ctypes
from ctypes import c_char_p, c_ulong

from pkcs11t import CKD_NULL, CKG_MGF1_SHA1, CKM, CKZ_DATA_SPECIFIED

IV_16 = {CKM.AES_CBC, CKM.AES_CBC_PAD, CKM.AES_CTS}
IV_8 = {CKM.DES3_CBC, CKM.DES3_CBC_PAD}
STRINGS = {
    CKM.CONCATENATE_BASE_AND_DATA,
    CKM.CONCATENATE_DATA_AND_BASE,
    CKM.XOR_BASE_AND_DATA,
    CKM.AES_ECB_ENCRYPT_DATA,
}
ECDH = {CKM.ECDH1_DERIVE, CKM.ECDH1_COFACTOR_DERIVE}


def structure(*fields):
    return type("Parameter", (ctypes.Structure,), {"_fields_": [(f"f{i}", kind) for i, kind in enumerate(fields)]})


AesCtr = structure(c_ulong, ctypes.c_ubyte * 16)
AesGcm = structure(c_char_p, c_ulong, c_ulong, c_char_p, c_ulong, c_ulong)
RsaOaep = structure(c_ulong, c_ulong, c_ulong, c_char_p, c_ulong)
Ecdh1 = structure(c_ulong, c_ulong, c_char_p, c_ulong, c_char_p)
AesCbcEncryptData = structure(ctypes.c_ubyte * 16, c_char_p, c_ulong)
String = structure(c_char_p, c_ulong)


def of(kind, point=b""):
    """The mechanism with its parameter. `point` is the attacker's half of a key agreement."""
    return kind, _parameter(kind, point)


def _parameter(kind, point):
    if kind in IV_16:
        return bytes(16)
    if kind in IV_8:
        return bytes(8)
    if kind in STRINGS:
        return String(bytes(32), 32)
    if kind in ECDH:
        return Ecdh1(CKD_NULL, 0, None, len(point), point)
    if kind == CKM.AES_CTR:
        return AesCtr(128)
    if kind == CKM.AES_GCM:
        return AesGcm(bytes(12), 12, 96, None, 0, 128)
    if kind == CKM.AES_CBC_ENCRYPT_DATA:
        return AesCbcEncryptData((ctypes.c_ubyte * 16)(), bytes(32), 32)
    if kind == CKM.RSA_PKCS_OAEP:
        return RsaOaep(CKM.SHA_1, CKG_MGF1_SHA1, CKZ_DATA_SPECIFIED, None, 0)
    if kind == CKM.EXTRACT_KEY_FROM_KEY:
        return bytes(c_ulong(0))
    return b""
