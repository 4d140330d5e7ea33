"""The certificate that a method's text is the target's own."""
