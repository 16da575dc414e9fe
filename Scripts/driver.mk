# Objects and a program, for build-driver.sh: it gives OUTPUT, OBJECTS (their folder), SOURCES, CLANG, FLAGS and LINKING.
parts = $(SOURCES:%=$(OBJECTS)/%.o)

# lld comes with Swift's clang and links for every target; gold has no end of warnings about sanitizers.
$(OUTPUT): $(parts)
	@echo linking $@
	@$(CLANG) $(FLAGS) -fuse-ld=lld $^ $(LINKING) -lm -pthread -o $@

$(OBJECTS)/%.o: %
	@mkdir -p $(@D)
	@$(CLANG) $(FLAGS) -MMD -MP -c $< -o $@

-include $(parts:.o=.d)

.DELETE_ON_ERROR:
