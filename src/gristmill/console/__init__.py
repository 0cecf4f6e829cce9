"""The operator's web pages: server-rendered, without JavaScript."""
