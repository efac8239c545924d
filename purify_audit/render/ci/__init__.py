"""Files for CI services: JUnit, SARIF, GitHub, GitLab, in-toto."""
