// Verifies tokens with jose through a JWKS URL. What goes in and out: tests/clients/README.md.

import { createInterface } from "node:readline";
import { createRemoteJWKSet, errors, jwtVerify } from "jose";

// Node 18 has WebCrypto, but not yet as a global.
globalThis.crypto ??= (await import("node:crypto")).webcrypto;

async function verdictOn(token, alg, keys, issuer, audience) {
  try {
    const { payload } = await jwtVerify(token, keys, {
      algorithms: [alg],
      issuer,
      audience,
      requiredClaims: ["exp"],
    });
    return { verdict: "verified", claims: payload };
  } catch (error) {
    const detail = `${error.code ?? error.name}: ${error.message}`;
    if (error instanceof errors.JWSSignatureVerificationFailed) return { verdict: "bad-signature", detail };
    if (error instanceof errors.JOSENotSupported) return { verdict: "unsupported-algorithm", detail };
    return { verdict: "refused", detail };
  }
}

const [url, issuer, audience, ...rest] = process.argv.slice(2);
if (audience === undefined || rest.length > 0) {
  console.error("usage: verify_jwt.mjs JWKS_URL ISSUER AUDIENCE < LINES");
  process.exit(2);
}
const keys = createRemoteJWKSet(new URL(url));
let allVerified = true;
for await (const line of createInterface({ input: process.stdin })) {
  const [alg, token] = line.split(" ");
  const verdict = await verdictOn(token, alg, keys, issuer, audience);
  allVerified &&= verdict.verdict === "verified";
  console.log(JSON.stringify(verdict));
}
process.exitCode = allVerified ? 0 : 1;
