// Package hostile holds the tests of what has broken container engines: images
// and processes that mean harm. Each test names the class.
package hostile
