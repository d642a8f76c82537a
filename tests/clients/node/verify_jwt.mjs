// Verifies tokens with jose through a JWKS URL. What goes in and out: tests/clients/README.md.

import { createInterface } from "node:readline";
import { createRemoteJWKSet, customFetch, errors, jwtVerify } from "jose";

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

const given = process.argv.slice(2);
// createRemoteJWKSet does not read Cache-Control: who uses it says how long a set is kept.
const cacheMs = given[0] === "--cache" ? 1000 * Number(given.splice(0, 2)[1]) : undefined;
const [url, issuer, audience, ...rest] = given;
if (audience === undefined || rest.length > 0 || Number.isNaN(cacheMs)) {
  console.error("usage: verify_jwt.mjs [--cache SECONDS] JWKS_URL ISSUER AUDIENCE < LINES");
  process.exit(2);
}
let fetches = 0;
const keys = createRemoteJWKSet(new URL(url), {
  cacheMaxAge: cacheMs,
  cooldownDuration: cacheMs,
  [customFetch]: (...request) => {
    fetches += 1;
    return fetch(...request);
  },
});
let allVerified = true;
for await (const line of createInterface({ input: process.stdin })) {
  const [alg, token] = line.split(" ");
  const verdict = await verdictOn(token, alg, keys, issuer, audience);
  allVerified &&= verdict.verdict === "verified";
  console.log(JSON.stringify({ ...verdict, fetches }));
}
process.exitCode = allVerified ? 0 : 1;
