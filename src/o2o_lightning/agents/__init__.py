"""The networks of one algorithm bundled: the state that phases hand on."""
