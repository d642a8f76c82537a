// Command verify_jwt verifies tokens with go-oidc, or with go-jose alone, through a JWKS URL.
// What goes in and out: tests/clients/README.md.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// verdict is one line of the output.
type verdict struct {
	Verdict string         `json:"verdict"`
	Claims  map[string]any `json:"claims,omitempty"`
	Detail  string         `json:"detail,omitempty"`
	Fetches int64          `json:"fetches"`
}

// counted is the way to the JWKS, which counts how often it is gone.
type counted struct{ fetches atomic.Int64 }

func (c *counted) RoundTrip(request *http.Request) (*http.Response, error) {
	c.fetches.Add(1)
	return http.DefaultTransport.RoundTrip(request)
}

// timeout is how long one token may take, with a fetch.
const timeout = time.Minute

// errBadSignature is a signature that does not fit.
var errBadSignature = errors.New("the signature does not fit")

// errUnsupported is an algorithm that the library does not know.
var errUnsupported = errors.New("neither go-oidc nor go-jose has this algorithm")

// supported is what go-jose names, and go-oidc takes over. go-jose answers an algorithm that it does not know
// as it answers a wrong signature, so the question must be put before.
var supported = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.ES256, jose.ES384, jose.ES512,
	jose.PS256, jose.PS384, jose.PS512, jose.EdDSA,
}

// verifier checks one token that must be signed with alg, and returns its claims.
type verifier func(ctx context.Context, token, alg string) (map[string]any, error)

func main() {
	library := flag.String("library", "go-oidc", "go-oidc or go-jose")
	flag.Parse()
	if flag.NArg() != 3 {
		fmt.Fprintln(os.Stderr, "usage: verify_jwt [-library go-oidc|go-jose] JWKS_URL ISSUER AUDIENCE < LINES")
		os.Exit(2)
	}
	url, issuer, audience := flag.Arg(0), flag.Arg(1), flag.Arg(2)
	var way counted
	client := &http.Client{Transport: &way}

	var verify verifier
	switch *library {
	case "go-oidc":
		verify = withGoOIDC(client, url, issuer, audience)
	case "go-jose":
		verify = withGoJose(client, url, issuer, audience)
	default:
		fmt.Fprintf(os.Stderr, "verify_jwt: no library %q\n", *library)
		os.Exit(2)
	}

	allVerified := true
	out := json.NewEncoder(os.Stdout)
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		alg, token, _ := strings.Cut(lines.Text(), " ")
		claims, err := map[string]any(nil), errUnsupported
		if slices.Contains(supported, jose.SignatureAlgorithm(alg)) {
			ctx, cancel := context.WithTimeout(context.Background(), timeout)
			claims, err = verify(ctx, token, alg)
			cancel()
		}
		answer := verdict{Verdict: nameOf(err), Claims: claims, Fetches: way.fetches.Load()}
		if err != nil {
			allVerified = false
			answer.Detail = err.Error()
		}
		if err := out.Encode(answer); err != nil {
			fmt.Fprintln(os.Stderr, "verify_jwt:", err)
			os.Exit(2)
		}
	}
	if err := lines.Err(); err != nil {
		fmt.Fprintln(os.Stderr, "verify_jwt:", err)
		os.Exit(2)
	}
	if !allVerified {
		os.Exit(1)
	}
}

func nameOf(err error) string {
	switch {
	case err == nil:
		return "verified"
	case errors.Is(err, errBadSignature):
		return "bad-signature"
	case errors.Is(err, errUnsupported):
		return "unsupported-algorithm"
	default:
		return "refused"
	}
}

// withGoOIDC verifies ID tokens as an OpenID Connect client does. RemoteKeySet keeps the keys that it has until it meets
// a kid that is not among them.
func withGoOIDC(client *http.Client, url, issuer, audience string) verifier {
	keys := oidc.NewRemoteKeySet(oidc.ClientContext(context.Background(), client), url)
	return func(ctx context.Context, token, alg string) (map[string]any, error) {
		config := &oidc.Config{ClientID: audience, SupportedSigningAlgs: []string{alg}}
		idToken, err := oidc.NewVerifier(issuer, keys, config).Verify(ctx, token)
		if err != nil {
			// go-oidc has no error value for this; the sentence is RemoteKeySet's.
			if strings.Contains(err.Error(), "failed to verify id token signature") {
				return nil, errors.Join(errBadSignature, err)
			}
			return nil, err
		}
		var claims map[string]any
		return claims, idToken.Claims(&claims)
	}
}

// withGoJose verifies with go-jose alone, which go-oidc stands on.
func withGoJose(client *http.Client, url, issuer, audience string) verifier {
	return func(ctx context.Context, token, alg string) (map[string]any, error) {
		keys, err := fetch(ctx, client, url)
		if err != nil {
			return nil, err
		}
		parsed, err := jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.SignatureAlgorithm(alg)})
		if err != nil {
			return nil, err
		}
		matching := keys.Key(parsed.Headers[0].KeyID)
		if len(matching) != 1 {
			return nil, fmt.Errorf("the JWKS has %d keys of kid %q", len(matching), parsed.Headers[0].KeyID)
		}
		var registered jwt.Claims
		var claims map[string]any
		err = parsed.Claims(matching[0].Key, &registered, &claims)
		switch {
		case errors.Is(err, jose.ErrCryptoFailure):
			return nil, errors.Join(errBadSignature, err)
		case err != nil:
			return nil, err
		}
		expected := jwt.Expected{Issuer: issuer, AnyAudience: jwt.Audience{audience}, Time: time.Now()}
		return claims, registered.ValidateWithLeeway(expected, 0)
	}
}

func fetch(ctx context.Context, client *http.Client, url string) (*jose.JSONWebKeySet, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("GET %s: %s", url, response.Status)
	}
	var keys jose.JSONWebKeySet
	return &keys, json.NewDecoder(response.Body).Decode(&keys)
}
