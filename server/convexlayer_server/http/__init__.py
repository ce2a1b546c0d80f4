"""HTTP: connections, request bodies, responses, problem details (RFC 9457), and middleware."""
